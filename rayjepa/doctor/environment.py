"""Environment variables that hurt, Ray's token, and the clock."""

import ctypes
import os
from pathlib import Path
from urllib.request import getproxies_environment, proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue]

from rayjepa.config import RunConfig
from rayjepa.data.sandbox import POISON
from rayjepa.doctor import token
from rayjepa.doctor.finding import Check, Finding, error, ok, warning

TIME_ERROR = 5
"""What adjtimex(2) returns if no time server keeps the clock."""
TIMEX_BYTES = 208


def environment_checks(run: RunConfig, *, alone: bool) -> list[Check]:
    """`alone`: the run has no other machine than this one."""
    return [
        Check("environment", lambda: environment(run)),
        Check("token", lambda: token_of_clients(alone=alone)),
        Check("clock", lambda: clock(alone=alone)),
    ]


def environment(run: RunConfig) -> list[Finding]:
    """What is set, and does harm."""
    lines = [*_threads(), *_proxies(run)]
    name, value = "environment", os.environ.get
    if value(POISON):
        what = f"{POISON} is set: decoders fail on purpose, for a drill"
        lines.append(error(name, what, f"unset {POISON}"))
    if value("RAY_TRAIN_V2_ENABLED", "1").lower() in ("0", "false"):
        what = "RAY_TRAIN_V2_ENABLED switches Ray Train to its first version, which a run cannot use"
        lines.append(error(name, what, "unset RAY_TRAIN_V2_ENABLED"))
    devices = value("CUDA_VISIBLE_DEVICES")
    if devices is not None and devices.strip() in ("", "-1") and run.cluster.gpus:
        what = f"CUDA_VISIBLE_DEVICES={devices!r} hides every GPU, also from a `ray start` here, and cluster.gpus=true"
        lines.append(error(name, what, "unset CUDA_VISIBLE_DEVICES"))
    address = value("RAY_ADDRESS")
    if address and run.cluster.address and address != run.cluster.address:
        what = f"RAY_ADDRESS={address}, and cluster.address={run.cluster.address}: the latter is used"
        lines.append(warning(name, what, "unset RAY_ADDRESS, since Ray's own commands use it"))
    return lines or [ok(name, "nothing is set that hurts")]


def _threads() -> list[Finding]:
    text, cores = os.environ.get("OMP_NUM_THREADS"), len(os.sched_getaffinity(0))
    if not text:
        return []
    if not text.isdecimal() or not int(text):
        return [warning("environment", f"OMP_NUM_THREADS={text!r} is no number", "unset OMP_NUM_THREADS")]
    if int(text) > cores:
        what = f"OMP_NUM_THREADS={text} is more than the {cores} cores, in every process"
        return [warning("environment", what, "unset OMP_NUM_THREADS; train.threads is for the workers")]
    return []


def _proxies(run: RunConfig) -> list[Finding]:
    """A proxy between this process and a cluster's dashboard, which is no address of the outer world."""
    proxy = getproxies_environment().get("http")
    address = run.cluster.address or os.environ.get("RAY_ADDRESS") or ""
    hosts = {"127.0.0.1", address.removeprefix("http://").partition(":")[0]} - {"", "auto", "local", "ray"}
    caught = sorted(host for host in hosts if not proxy_bypass_environment(host))
    if not proxy or not caught:
        return []
    remedy = f"export no_proxy={','.join([*filter(None, [os.environ.get('no_proxy')]), 'localhost', *caught])}"
    return [warning("environment", f"http_proxy={proxy} also catches requests to {', '.join(caught)}", remedy)]


def token_of_clients(*, alone: bool) -> list[Finding]:
    """Whether Ray's clients here send a token, and who else may read it."""
    path = token.token_file()
    lines = [_mode(path, alone=alone)]
    if path and token.others_can_read(path):
        what = f"{path} can be read by other users of this machine (mode {path.stat().st_mode & 0o777:04o})"
        lines.append(warning("token", what, f"chmod 600 {path}"))
    return lines


def _mode(path: Path | None, *, alone: bool) -> Finding:
    mode, there = os.environ.get(token.MODE, ""), token.token() is not None
    where = path or token.TEXT
    if mode.lower() == "disabled":
        what = f"{token.MODE}=disabled: whoever reaches a cluster of this account may run code in it"
        return warning("token", what, f"export {token.MODE}=token")
    if mode.lower() not in ("", "token"):
        what = f"{token.MODE}={mode}; token and disabled are what Ray knows"
        return error("token", what, f"export {token.MODE}=token")
    if alone:
        return ok("token", "a cluster of the run's own has one of its own")
    if mode and not there:
        what = f"{token.MODE}=token and there is no token: Ray's processes end at once"
        remedy = f"copy the head's token (`ray get-auth-token` there) {token.destination()}"
        return error("token", what, remedy)
    if there and not mode:
        what = f"there is one ({where}), but clients send it only with {token.MODE}=token"
        return warning("token", what, f"export {token.MODE}=token")
    return ok("token", f"clients send that of {where}" if there else "none here")


def clock(*, alone: bool) -> Finding:
    """Whether a time server keeps the clock; between machines, checkpoints and drivers are compared by time."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    if state < 0:
        return ok("clock", "its state is not shown in this container")
    if state != TIME_ERROR:
        return ok("clock", "kept by a time server")
    if alone:
        return ok("clock", "no time server keeps it; one machine needs none")
    what = "no time server keeps it: it will drift away from the other nodes"
    return warning("clock", what, "systemctl enable --now systemd-timesyncd, or chronyd")

"""Is this cluster fit for the run: who may use it, what it is made of, and what its nodes say of themselves."""

import ipaddress
import platform
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from rayjepa.config import RunConfig
from rayjepa.doctor import Check, Finding, carried_out, error, ok, token, warning
from rayjepa.doctor.packages import installed
from rayjepa.doctor.storage import place_in
from rayjepa.on_ray import gcs
from rayjepa.on_ray.answers import Answers, findings_of, here
from rayjepa.on_ray.capacity import capacity
from rayjepa.on_ray.head import Head
from rayjepa.on_ray.nodes import ask
from rayjepa.on_ray.submission import STOP_WAIT

CONNECT_S = 4.0
NODES_S = 60.0
"""For all nodes together; each may have to start a worker first."""
ADVISORY = "CVE-2023-48022"
FIREWALL = "and let a firewall admit only the nodes to the head's ports"


def examine(run: RunConfig, address: str, folder: Path, *, insecure: bool) -> Iterator[Finding]:
    """Findings on the cluster at `address`, what others depend on first; ends where the rest cannot be known."""
    at = carried_out(Check("address", lambda: reachable(address), 3 * CONNECT_S))
    yield from at
    if at[0].state == "error":
        return
    address = bootstrap(address)
    guard = carried_out(Check("access", lambda: access(address, insecure=insecure), 4 * gcs.DEADLINE_S))
    yield from guard
    heads: list[Head] = []

    def read() -> Finding:
        heads.append(gcs.read_head(address, token.token()))
        return versions(heads[0])

    same = carried_out(Check("versions", read, 6 * gcs.DEADLINE_S)) if _is_admitted(guard) else []
    yield from same
    if not heads:
        return
    yield from carried_out(Check("dashboard", lambda: dashboard(heads[0], insecure=insecure), 3 * CONNECT_S))
    yield from carried_out(Check("capacity", lambda: capacity(run, heads[0])))
    if same[0].state != "error":
        yield from asked_nodes(run, address, heads[0], folder)


def bootstrap(address: str) -> str:
    """HOST:PORT of the head, from the forms that Ray's users know.

    Raises:  ValueError for a form that no run can attach to.
    """
    if address == "auto":
        from ray._private.services import find_bootstrap_address

        if found := find_bootstrap_address(None):
            return found
        raise ValueError("auto, and no cluster was started on this machine")
    if "://" in address:
        what = "a Ray client's address" if address.startswith("ray://") else "a dashboard's address, for jobs"
        raise ValueError(f"{address} is {what}; a run attaches to the head itself")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address} is not HOST:PORT")
    return address


def reachable(address: str) -> Finding:
    """Whether anything listens at the head's address."""
    remedy = "give the head's HOST:PORT with --address; `ray start --head` printed it (port 6379 unless --port=…)"
    try:
        host, _, port = bootstrap(address).rpartition(":")
    except ValueError as mistake:
        return error("address", str(mistake), remedy)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return ok("address", f"{host} port {port} listens")
    except OSError as failure:
        what = f"nothing answers at {address}: {failure.strerror or failure}"
        remedy = "is the cluster up, the port the head's own (6379 unless --port=…), and no firewall between? A dead "
        remedy += "RAY_ADDRESS also stops every run: unset it for a cluster of the run's own"
        return error("address", what, remedy)


def access(address: str, *, insecure: bool) -> list[Finding]:
    """Who may run code in the cluster: everybody, or those with the token; and whether we are among them."""
    try:
        asks = gcs.asks_token(address)
    except ConnectionError as failure:
        what = f"what listens at {address} is no head of a Ray cluster ({failure})"
        remedy = "give the head's own port (6379, or that of `ray start --head --port=…`), not the dashboard's"
        return [error("access", what, f"{remedy}; with TLS, set RAY_USE_TLS and the certificates as on the head")]
    if not asks:
        what = f"the head answers without a token: whoever reaches it can run code on every node ({ADVISORY})"
        remedy = f"`ray get-auth-token --generate`, the same token and RAY_AUTH_MODE=token on all nodes, {FIREWALL}"
        return [(warning if insecure else error)("access", what, f"{remedy}; --insecure makes this a warning")]
    mine = token.token()
    remedy = f"copy the head's token (`ray get-auth-token` there) {token.destination()}, and export {token.MODE}=token"
    if mine is None:
        return [error("token accepted", "the head wants a token, and there is none here", remedy)]
    if not gcs.admits(address, mine):
        what = f"the head refuses the token of {token.token_file() or token.TEXT}"
        return [error("token accepted", what, remedy)]
    lines = [ok("access", "only with the token, and it takes ours")]
    if not token.is_sent():
        what = f"Ray's clients here do not send the token: {token.MODE} is not set to token"
        lines.append(error("token sent", what, f"export {token.MODE}=token"))
    return lines


def _is_admitted(guard: list[Finding]) -> bool:
    """Whether the head may be asked more: it takes our token, or wants none."""
    return any(finding.name == "access" and (finding.state == "ok" or ADVISORY in finding.found) for finding in guard)


def versions(head: Head) -> Finding:
    """Ray and Python of the head against ours; Ray refuses a driver that differs in either."""
    ours, theirs = (installed("ray"), platform.python_version()), (head.ray, head.python)
    if ours != theirs:
        what = f"Ray {head.ray} on Python {head.python} there, Ray {ours[0]} on Python {ours[1]} here"
        return error("versions", what, "the same of both everywhere: `pip install -c cluster/constraints.txt .`")
    return ok("versions", f"Ray {head.ray} on Python {head.python}, as here")


def dashboard(head: Head, *, insecure: bool) -> list[Finding]:
    """Whether the dashboard is there, and whom it answers."""
    name = "dashboard"
    absent = warning(
        name,
        "the head runs without: no jobs can be submitted",
        "`ray start --head` with --include-dashboard=true, and ray[default] installed there",
    )
    if head.dashboard is None:
        return [absent]
    host, _, port = head.dashboard.rpartition(":")
    lead = next((node.address for node in head.nodes if node.is_head), host)
    is_inner = ipaddress.ip_address(host).is_loopback if host[:1].isdigit() else host == "localhost"
    if is_inner and not _is_ours(lead):
        what = f"{head.dashboard} on the head, which only the head itself reaches"
        return [ok(name, f"{what} (`ssh -L {port}:{head.dashboard} {lead}` shows it here)")]
    url = f"http://{head.dashboard}/api/version"
    bare, mine = _status(url, None), _status(url, token.token())
    if bare == 200:
        what = f"{url} answers without a token: whoever reaches it can submit jobs ({ADVISORY})"
        remedy = f"RAY_AUTH_MODE=token on the head and a restart of it, {FIREWALL}"
        return [(warning if insecure else error)(name, what, f"{remedy}; --insecure makes this a warning")]
    if bare is None and mine is None:  # the address is announced also if the dashboard is switched off
        return [absent]
    if mine != 200:
        what = f"{url} answers {mine or 'nothing'} with our token, and {bare or 'nothing'} without"
        return [error(name, what, "the head's log dashboard.log says more; a proxy between? (no_proxy)")]
    lines = [ok(name, f"{head.dashboard} answers with our token and refuses without")]
    if not is_inner:
        what = f"{head.dashboard} is open to the network, and http carries the token unencrypted"
        lines.append(warning(name, what, "ray start --head --dashboard-host=127.0.0.1, and `ssh -L` to it"))
    return lines


def _status(url: str, secret: str | None) -> int | None:
    """HTTP status of a GET, without any proxy; None if there was no answer."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {secret}"} if secret else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=CONNECT_S) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def _is_ours(host: str) -> bool:
    """Whether an address belongs to this machine."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def asked_nodes(run: RunConfig, address: str, head: Head, folder: Path) -> list[Finding]:
    """What the nodes say of themselves, all asked at once; a file that they should see lies in `folder` meanwhile."""
    videos = run.data.videos
    paths = [str(Path(videos).expanduser().absolute())] if videos and not set(videos) & set("*?[") else []
    text, answers = uuid.uuid4().hex, Answers(head=head, here=here())
    with ExitStack() as stack:
        try:
            file = stack.enter_context(place_in(folder)) / "seen"
            file.write_text(text)
        except OSError:  # the storage's own lines say why
            file = None
        question = {
            "packages": list(answers.here.packages),
            "file": str(file) if file else None,
            "text": text,
            "paths": paths,
            "variable": STOP_WAIT,
        }
        mode = "token" if token.token() else None
        sessions = {node.id: node.session for node in head.nodes}
        try:
            for answer in ask(address, question, sessions, patience_s=NODES_S, token_mode=mode):
                answers.add(answer)
        except RuntimeError as failure:
            return [_unasked(str(failure))]
    return carried_out(Check("nodes", lambda: findings_of(answers)))


def _unasked(reason: str) -> Finding:
    what = f"the nodes could not be asked, nor could a run start from here: {reason}"
    if "No node info found" in reason or "Can't find a" in reason:
        what = "this machine is no node of the cluster: a run cannot be started from here, nor the nodes asked"
    return error("nodes", what, "on a node: `rayjepa doctor --address auto`; from outside, `rayjepa submit pretrain …`")

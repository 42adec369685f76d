"""The Ray cluster of a run: somebody's by address, else one of our own that nobody else sees."""

import functools
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjepa.config import RunConfig
from rayjepa.train.room import available_gib, logical_cpus, memory_gib

if TYPE_CHECKING:
    from rayjepa.on_ray.placement import Part

log = logging.getLogger(__name__)

# Set before ray is imported: it reads its environment then. Users' own values win.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # The controller takes one report per poll, so its period is the floor of the time of a checkpoint.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker group waits for nodes that boot, images and all; Ray's minute would be over, and over again. What is
    # missing is said meanwhile.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    # Ray's metrics exporter needs the dashboard's extras.
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

# Trials' drivers each take one unit of this custom resource and no CPU.
SEAT = "sweep"
# Memory of a trial's driver (torch, Ray Train): RSS.
TRIAL_GIB = 0.5

# Tries to start a cluster of our own.
STARTS = 3

# The node of a cluster of our own has this label, by which every process of the cluster knows it.
EMBEDDED = {"rayjepa.io/cluster": "embedded"}


def address_of(run: RunConfig) -> str | None:
    """Address of the cluster to attach to; None means an embedded one. Nothing else is ever attached to."""
    return run.cluster.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def cluster(run: RunConfig, *, logs: Path | None = None, trials: int = 0) -> Iterator[None]:
    """Connect this process to the run's cluster; an embedded one ends with the block, its temp folder too.

    Of a sweep, `trials` runs are to fit at once: an embedded cluster then has a seat for the driver of each.
    What Ray's nodes tell the driver goes to `logs`/messages.txt and not into the display (an attempt's record says why
    its workers ended). If the block fails, what an embedded cluster's processes wrote is kept in `logs` too.
    Raises:  RuntimeError if the cluster cannot be reached, or cannot hold the run: with the numbers and the knobs.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    address = address_of(run)
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Ray prints such messages from a thread to what is sys.stdout then; there is no switch for it in 2.60.
    with (
        (logs / "messages.txt" if logs else Path(os.devnull)).open("a") as messages,
        redirect_stdout(messages),
        _attached(address) if address else _embedded(run, logs, trials),
    ):
        # Connecting to Ray put an exit of its own in the place of what saves.
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        _check_room(run)
        yield


@contextmanager
def _attached(address: str) -> Iterator[None]:
    import ray

    _read_token_again()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"cluster.address={address}: no Ray cluster answers ({first}). Start one with `ray start --head`, check "
            "RAY_AUTH_MODE and the token, or unset cluster.address and RAY_ADDRESS for an embedded cluster"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _read_token_again() -> None:
    """Ray reads its mode and token once, when it is imported: perhaps by somebody else, and before they were set."""
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _embedded(run: RunConfig, logs: Path | None, trials: int) -> Iterator[None]:
    """A cluster of this process: own temp folder and ports, own token, logical CPUs as the run needs them."""
    _check_machine(run, trials)
    # A token of our own, in this process tree only: Ray would otherwise write one to the user's home.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    _read_token_again()
    folder = tempfile.mkdtemp(prefix="rayjepa-", dir="/tmp")  # short: Ray's sockets live there (107 bytes at most)
    try:
        _start(
            folder,
            num_cpus=logical_cpus(run) * max(trials, 1),
            resources={SEAT: trials} if trials else None,
            object_store_memory=int(run.cluster.object_store_gib * max(trials, 1) * 2**30),
        )
        yield
    except RuntimeError:
        written = Path(folder) / "session_latest" / "logs"
        if logs is not None and written.is_dir():
            with suppress(OSError):  # a file that goes while it is copied must not hide why the run failed
                shutil.copytree(written, logs, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            log.error("what the workers wrote is in %s", logs)
        raise
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str, **size: Any) -> None:
    """Start a cluster in `folder`, again if it is late: Ray gives its node 30 s, which a busy machine may exceed.

    Raises:  RuntimeError if it was late STARTS times.
    """
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(
                address="local",
                labels=EMBEDDED,
                include_dashboard=False,
                _temp_dir=folder,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **size,
            )
            return
        except Exception as error:  # Ray raises the bare class
            ray.shutdown()
            _end_processes(folder)
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            if not left:
                raise RuntimeError(
                    f"Ray did not start on this machine in {STARTS} tries ({why}); {os.getloadavg()[0]:.0f} processes "
                    f"want to run on {os.cpu_count()} cores. `rayjepa doctor` looks at the machine; "
                    "cluster.workers=0 train.engine=plain trains without Ray"
                ) from error
            log.warning("Ray did not start (%s): trying again", why)


def _end_processes(folder: str) -> None:
    """Kill the children of this process that name `folder`: what a start that failed leaves behind."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended just now
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and folder.encode() in (stat.parent / "cmdline").read_bytes():
                os.kill(int(stat.parent.name), signal.SIGKILL)


def _check_machine(run: RunConfig, trials: int) -> None:
    need = trials * (memory_gib(run) + TRIAL_GIB) if trials else memory_gib(run)
    have = available_gib()
    sizes = f"cluster.workers={run.cluster.workers} and cluster.decoders={run.cluster.most_decoders}"
    sizes = f"{trials} trials at once with {sizes}" if trials else sizes
    if need > have:
        raise RuntimeError(
            f"{sizes} need about {need:.1f} GiB of memory here and {have:.1f} GiB are free; "
            "lower them, or attach to a cluster with cluster.address"
        )
    cores = len(os.sched_getaffinity(0))
    if max(trials, 1) * (run.cluster.workers * run.train.threads + run.cluster.most_decoders) > 2 * cores:
        warnings.warn(f"{sizes} share {cores} cores: the run is correct, and slow", stacklevel=2)


def _check_room(run: RunConfig) -> None:
    """Refuse a run that this cluster will never hold; one whose nodes may still come, or are in use, will wait."""
    from rayjepa.on_ray import placement, store, waiting

    parts = parts_of(run, gpus=use_gpus(run))
    nodes = waiting.read_status().nodes
    lacking = placement.unplaced(parts, nodes, idle=True)
    if not lacking:
        if run.cluster.workers:  # without any, nothing streams: `index` and `transcode` ask for the CPUs alone
            store.refuse_too_small(run, nodes)
        return
    why = "It has no autoscaler that could add them"
    if not is_embedded() and waiting.autoscaler() != "none":
        log.info("the cluster is smaller than the run: asking its autoscaler for %s", placement.listed(lacking))
        if waiting.can_grow(parts):
            return
        why = "Its autoscaler says that it cannot bring them: no node type of it fits, or their maxima are too small"
    raise RuntimeError(placement.refusal(parts, lacking, nodes, why=why))


def is_embedded() -> bool:
    """Whether the connected cluster is one of our own, for one run or sweep, on one machine."""
    import ray

    return any(EMBEDDED.items() <= node["Labels"].items() for node in ray.nodes())


def parts_of(run: RunConfig, *, gpus: bool) -> "tuple[Part, Part]":
    """What the run asks of the connected cluster, for training and for decoding; an embedded one needs no labels."""
    from rayjepa.on_ray.placement import decode_part, train_part

    labels = not is_embedded()
    return train_part(run, gpus=gpus, labels=labels), decode_part(run, labels=labels)


def use_gpus(run: RunConfig) -> bool:
    """Whether each worker gets a GPU: as set, else if the connected cluster has enough, or may get them."""
    import ray

    if run.cluster.gpus is not None:
        return run.cluster.gpus
    present = ray.cluster_resources().get("GPU", 0) >= run.cluster.workers
    return present or (not is_embedded() and _may_come(parts_of(run, gpus=True)[0]))


@functools.cache
def _may_come(part: "Part") -> bool:
    """Asked once a process: the answer takes an autoscaler some seconds, and decides what the run is."""
    from rayjepa.on_ray.waiting import can_grow

    return can_grow([part])

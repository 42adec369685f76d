"""The Ray cluster of a run: somebody's by address, else one of our own that nobody else sees."""

import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from rayjepa.config import RunConfig

log = logging.getLogger(__name__)

# Memory of one train worker (torch, DeepSpeed) and of one decode actor with its child, measured on CPU: RSS 0.5-0.8
# and 0.2 GiB. A worker group that cannot fit is refused before it starts rather than killed while it trains.
WORKER_GIB, DECODER_GIB = 0.6, 0.2

# Set before ray is imported: it reads its environment then. Users' own values win.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # The controller takes one report per poll, so its period is the floor of the time of a checkpoint.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ray's metrics exporter needs the dashboard's extras.
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def address_of(run: RunConfig) -> str | None:
    """Address of the cluster to attach to; None means an embedded one. Nothing else is ever attached to."""
    return run.cluster.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def cluster(run: RunConfig, *, logs: Path | None = None) -> Iterator[None]:
    """Connect this process to the run's cluster; an embedded one ends with the block, its temp folder too.

    What Ray's nodes tell the driver goes to `logs`/messages.txt and not into the display (an attempt's record says why
    its workers ended). If the block fails, what an embedded cluster's processes wrote is kept in `logs` too.
    Raises:  RuntimeError if the cluster cannot be reached, or cannot hold the run: with the numbers and the knobs.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    address = address_of(run)
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
    # Ray prints such messages from a thread to what is sys.stdout then; there is no switch for it in 2.60.
    with (
        (logs / "messages.txt" if logs else Path(os.devnull)).open("a") as messages,
        redirect_stdout(messages),
        _attached(address) if address else _embedded(run, logs),
    ):
        _check_room(run)
        yield


@contextmanager
def _attached(address: str) -> Iterator[None]:
    import ray

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


@contextmanager
def _embedded(run: RunConfig, logs: Path | None) -> Iterator[None]:
    """A cluster of this process: own temp folder and ports, own token, logical CPUs as the run needs them."""
    _check_machine(run)
    # A token of our own, in this process tree only: Ray would otherwise write one to the user's home.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    folder = tempfile.mkdtemp(prefix="rayjepa-", dir="/tmp")  # short: Ray's sockets live there (107 bytes at most)
    try:
        ray.init(
            address="local",
            num_cpus=logical_cpus(run),
            object_store_memory=int(run.cluster.object_store_gib * 2**30),
            include_dashboard=False,
            _temp_dir=folder,
            log_to_driver=False,
            logging_level=logging.ERROR,
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


def logical_cpus(run: RunConfig) -> int:
    """Logical CPUs that the run needs: train workers, decode actors, and one for Ray Data's own tasks."""
    return int(-(-run.cluster.workers * run.cluster.cpus_per_worker // 1)) + run.cluster.decoders + 1


def _check_machine(run: RunConfig) -> None:
    need = run.cluster.workers * WORKER_GIB + run.cluster.decoders * DECODER_GIB + run.cluster.object_store_gib
    have = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    sizes = f"cluster.workers={run.cluster.workers} and cluster.decoders={run.cluster.decoders}"
    if need > have:
        raise RuntimeError(
            f"{sizes} need about {need:.1f} GiB of memory here and {have:.1f} GiB are free; "
            "lower them, or attach to a cluster with cluster.address"
        )
    cores = len(os.sched_getaffinity(0))
    if run.cluster.workers * run.train.threads + run.cluster.decoders > 2 * cores:
        warnings.warn(f"{sizes} share {cores} cores: the run is correct, and slow", stacklevel=2)


def _check_room(run: RunConfig) -> None:
    """Refuse a worker group that would leave Ray Data no CPU: it would wait for ever."""
    import ray

    cpus, gpus = (ray.cluster_resources().get(kind, 0) for kind in ("CPU", "GPU"))
    need = logical_cpus(run)
    if cpus < need:
        raise RuntimeError(
            f"the cluster has {cpus:g} CPUs and the run needs {need}: {run.cluster.workers} (cluster.workers) "
            f"x {run.cluster.cpus_per_worker:g} (cluster.cpus_per_worker) + {run.cluster.decoders} (cluster.decoders) "
            "+ 1 for Ray Data's own tasks"
        )
    if run.cluster.gpus and gpus < run.cluster.workers:
        raise RuntimeError(f"cluster.gpus=true needs {run.cluster.workers} GPUs (cluster.workers); it has {gpus:g}")


def use_gpus(run: RunConfig) -> bool:
    """Whether each worker gets a GPU: as set, else if the connected cluster has enough."""
    import ray

    if run.cluster.gpus is not None:
        return run.cluster.gpus
    return ray.cluster_resources().get("GPU", 0) >= run.cluster.workers

"""What a run asks of the machines that it is on: logical CPUs and memory of its processes."""

from pathlib import Path

from rayjepa.config import RunConfig

# Memory of one train worker (torch, DeepSpeed) and of one decode actor with its child, measured on CPU: RSS 0.5-0.8
# and 0.2 GiB. A worker group that cannot fit is refused before it starts rather than killed while it trains.
WORKER_GIB, DECODER_GIB = 0.6, 0.2


def logical_cpus(run: RunConfig) -> int:
    """Logical CPUs that the run needs: train workers, decode actors, and one for Ray Data's own tasks."""
    return int(-(-run.cluster.workers * run.cluster.cpus_per_worker // 1)) + run.cluster.most_decoders + 1


def memory_gib(run: RunConfig) -> float:
    """Memory that a run with a cluster of its own takes on this machine, its object store included."""
    return run.cluster.workers * WORKER_GIB + run.cluster.most_decoders * DECODER_GIB + run.cluster.object_store_gib


def available_gib(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """What new processes can get: of the machine, and of the container's limit if there is one.

    Pages that hold copies of files count, since they are given back when they are wanted.
    """
    fields = dict(line.split(":", 1) for line in proc.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            free = min(free, int(limit) - int(used))
    except OSError:
        pass  # no container, or one that does not show its limits
    return free / 2**30

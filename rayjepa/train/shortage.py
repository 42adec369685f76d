"""Out of memory: what was short, and which knobs help, with the values that they have."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from rayjepa.config import RunConfig, prefetch_of
from rayjepa.train.attempts import read_attempts, read_ends
from rayjepa.train.engine import ranks
from rayjepa.train.restart import finished_steps, restart_point

SHORT = "out of memory"
"""How every such message begins, in attempts' records too."""
Kind = Literal["device", "host"]
# What PyTorch, CUDA's libraries and the C++ runtime say; PyTorch has a type of its own for the first alone.
DEVICE = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cuda failure 2 'out of")
KILLED = f"{SHORT} on a node"
"""How the message begins if Ray ended a process for it."""
HOST = ("DefaultCPUAllocator: ", "std::bad_alloc", "Cannot allocate memory")


def kind_of(error: BaseException) -> Kind | None:
    """What `error` says was short: memory of the device, of the machine, or none of these."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in DEVICE):
        return "device"
    if isinstance(error, MemoryError) or any(sign in text for sign in HOST):
        return "host"
    return None


@contextmanager
def explained(run: RunConfig, *, device: torch.device, phase: str = "", examining: bool = False) -> Iterator[None]:
    """Turn an error of memory inside the block into a RuntimeError that names the knobs; others pass.

    `phase` is the name of the present phase if it has knobs of its own. The error is raised on its rank alone, at once:
    the others may wait in a collective, and go with the worker group.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = None if str(error).startswith(SHORT) else kind_of(error)
        if kind is None:
            raise
        where = f"on {device}" if kind == "device" else f"on the host of {device}"
        doing = "examining held-out clips" if examining else "training"
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition("err == 0. ")[2][:300]
        knobs = advice(run, kind, device, examining=examining)
        knobs += f". What phases[{phase}].set has must be changed there" if phase else ""
        raise RuntimeError(f"{SHORT} {where}, rank {ranks()[0]}, while {doing} ({first}); {knobs}") from error


def advice(run: RunConfig, kind: Kind, device: torch.device | None = None, *, examining: bool = False) -> str:
    """The knobs that help, the cheapest first."""
    on_host = [
        f"cluster.prefetch={prefetch_of(run)} (micro-batches held ready by each worker)",
        f"cluster.decoders={run.cluster.decoders} (a process of up to data.decode_memory_gib each)",
        f"cluster.object_store_gib={run.cluster.object_store_gib:g} (shared memory of an embedded cluster)",
    ]
    computes_there = kind == "device" or (device is not None and device.type == "cpu")
    knobs = (_on_device(run) if computes_there else []) + (on_host if kind == "host" else [])
    if run.cluster.workers == 0:
        knobs = [knob for knob in knobs if not knob.startswith("cluster.")]
    if examining:
        knobs = [f"health.batch={run.health.batch} (held-out clips in one pass: halve it)", *knobs]
    return f"in the order to try: {'; '.join(knobs)}. `rayjepa plan` estimates what a change gives"


def completed(reason: str, run: RunConfig) -> str:
    """Why a run ended, with the knobs that help if Ray ended a worker for its node's memory: Ray knows none of them."""
    return f"{reason}; {advice(run, 'host')}" if reason.startswith(KILLED) else reason


def _on_device(run: RunConfig) -> list[str]:
    """What lowers the memory of a rank's model and clips."""
    knobs: list[str] = []
    if run.micro_batch > 1:
        more = next(n for n in range(2, run.micro_batch + 1) if run.micro_batch % n == 0) * run.train.accumulation
        knobs.append(
            f"train.accumulation={run.train.accumulation} (a rank takes {run.micro_batch} clips at once: set {more})"
        )
    if not run.train.checkpoint_blocks:
        knobs.append("train.checkpoint_blocks=false (true computes activations again instead of keeping them)")
    if run.train.engine == "plain":
        knobs.append("train.engine=plain (zero shards the optimizer over ranks)")
    elif run.zero.stage < 3:
        knobs.append(f"zero.stage={run.zero.stage} (2 shards gradients too, 3 also parameters and target)")
    knobs.append(f"data.frames={run.data.frames} and data.size_px={run.data.size_px} (fewer tokens: a new run)")
    return knobs


def refuse_to_repeat(run_dir: Path, *, owner: str) -> None:
    """Refuse to begin anew where this driver's last attempt began and ended for want of memory: it would end so again.

    Called before an attempt, by the one process that opens it. An attempt that made a checkpoint is worth another, and
    so is one that Ray ended: other processes may have filled the node.
    Raises:  RuntimeError with what the rank said.
    """
    attempts = [attempt for attempt in read_attempts(run_dir).values() if attempt.owner == owner]
    if not attempts:
        return
    last = attempts[-1]
    saved = restart_point(run_dir)
    if (0 if saved is None else finished_steps(saved)) != last.start:
        return
    for reason in read_ends(run_dir).get(last.attempt, {}).values():
        if reason.startswith(SHORT) and not reason.startswith(KILLED):
            raise RuntimeError(reason)

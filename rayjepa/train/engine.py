"""What the loop needs of an engine, and the parts that both engines share."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, assert_never, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from rayjepa.config import RunConfig
from rayjepa.masks import Split
from rayjepa.model import Jepa, Prediction, Target, build
from rayjepa.train.pieces import Tensors

GROUP_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in a collective: a checkpoint of a slow store, or a clip at its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What became of one optimizer step; the same on every rank."""

    refused: str | None
    """Why parameters, moments and target were left as they were; none: the step was taken."""
    grad_norm: float
    """Norm of the averaged gradient before clipping."""
    stop: bool = False
    """Whether any rank asked to stop."""


@runtime_checkable
class Engine(Protocol):
    """Trains a `Jepa` beside its target. Every method is called by all ranks, in the same order.

    A step is train.accumulation times (forward, backward), then `step`.
    """

    rank: int
    world: int
    device: torch.device
    jepa: Jepa
    target: Target

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        index: Int64[Tensor, " B"] | None = None,
        *,
        stream: int = 0,
    ) -> Prediction:
        """Predictions beside the target's features; no gradient flows into the target.

        `stream` is the place in the run's streams of the one that all clips are of.
        """
        ...

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of `loss`, which the caller divided by train.accumulation.

        A loss that is not finite is noted on the device, and refuses the step.
        """
        ...

    def step(
        self, *, lr: float, weight_decay: float, momentum: float, clip: float | None = None, stop: bool = False
    ) -> Step:
        """Average the gradients over ranks, clip, update, move the target; or refuse, and change nothing.

        `clip` bounds the gradient norm of each part that optim.clip_parts makes; none: nothing is clipped.
        All ranks learn here, in one collective, whether one of them saw a bad loss or wants to stop.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's shard into `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Take every tensor from the shards in `folder`, whatever engine and number of ranks wrote them."""
        ...

    def adopt(self, tensors: Tensors) -> None:
        """Take parameters (kind "master") and the target from whole tensors, the same on all ranks; the rest stays."""
        ...

    def close(self) -> None:
        """Let go of what the engine holds of the process."""
        ...


def make_engine(run: RunConfig, *, device: torch.device | None = None) -> Engine:
    """The engine of train.engine, on `device` (none: this process's GPU, or the CPU), with untrained weights."""
    device = device or default_device()
    match run.train.engine:
        case "plain":
            from rayjepa.train.plain import PlainEngine

            return PlainEngine(run, build(run), device=device)
        case "zero":
            from rayjepa.train.zero import ZeroEngine  # deepspeed takes seconds to import

            return ZeroEngine(run, build(run), device=device)
        case _ as unreachable:
            assert_never(unreachable)


def default_device() -> torch.device:
    """The GPU of this process's local rank if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def join_group(device: torch.device, *, always: bool) -> bool:
    """See to a process group where one is needed; return whether it was made here.

    A group that exists (Ray Train makes it) is used; a launcher's environment is followed; `always` makes a group of
    one, without a port, where there is neither.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend, timeout=GROUP_TIMEOUT)
        return True
    if always:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # public, but not in torch's list
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=GROUP_TIMEOUT)
    return always


def ranks() -> tuple[int, int]:
    """Rank and world size of this process; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_weights(jepa: Jepa) -> Jepa:
    """The same model with rank 0's weights and buffers on every rank."""
    if ranks()[1] > 1:
        for tensor in jepa.state_dict().values():
            dist.broadcast(tensor, src=0)
    return jepa


def gather_rows(row: Float64[Tensor, " K"]) -> Float64[Tensor, "W K"]:
    """The row of every rank, in rank order; rows are of one length."""
    if not dist.is_initialized():
        return row[None]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows)


def gather_objects(item: Any) -> list[Any]:
    """The item of every rank, in rank order; all ranks wait for each other."""
    if not dist.is_initialized():
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def to_device(splits: tuple[Split, ...], device: torch.device) -> tuple[Split, ...]:
    """The same masks, where the tokens are; what several splits share is moved once and still shared."""
    moved: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            crosses = device.type == "cuda" and not tensor.is_cuda
            # A copy from ordinary memory would wait for all that the GPU has to do.
            moved[id(tensor)] = (tensor.pin_memory() if crosses else tensor).to(device, non_blocking=True)
        return moved[id(tensor)]

    def maybe(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else move(tensor)

    return tuple(
        Split(
            context=move(s.context),
            target=move(s.target),
            context_valid=maybe(s.context_valid),
            target_valid=maybe(s.target_valid),
        )
        for s in splits
    )


def autocast(run: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast if train.precision says so; parameters stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.train.precision == "bf16")


def encoder_tensors(jepa: Jepa) -> Iterable[tuple[str, Tensor]]:
    """What the target follows: the encoder's parameters and buffers by name."""
    return chain(jepa.encoder.named_parameters(), jepa.encoder.named_buffers())

"""Clips of noise that depend on the sample index alone, and steps on them, for the tests of the training floor."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rayjepa.config import RunConfig
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Layout, Window
from rayjepa.data.tape import micro_batch_ids
from rayjepa.masks import splits_for
from rayjepa.objective import score
from rayjepa.train.engine import Step
from rayjepa.train.partition import Partition
from rayjepa.train.schedules import clip_norm
from rayjepa.views import to_views

SPOILS = {
    "nan loss": "loss is nan",
    "nan loss with finite gradients": "loss is nan",
    "inf loss": "loss is inf",
    "inf gradient": "gradient norm is inf",
    "huge norm": "is above optim.max_norm=1000",
}
"""Ways to spoil a step, and why it is then refused."""


def made_spec(run: RunConfig, index: int, attempt: int = 0) -> ClipSpec:
    return ClipSpec(
        index=index,
        attempt=attempt,
        stream="video",
        video=index,
        uri=f"made/{index}-{attempt}.mp4",
        start_s=0.0,
        frames=run.data.frames,
        fps=run.data.fps,
        window=Window(size_px=run.data.size_px, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1),
        pixels="i420",
        flip=index % 2 == 1,
        mask_seed=1000 + index,
        view_seed=2000 + index,
    )


def made_clips(run: RunConfig, ids: Sequence[int]) -> ClipBatch:
    specs = tuple(made_spec(run, i) for i in ids)
    rows = [
        torch.randint(0, 256, (s.nbytes,), generator=torch.Generator().manual_seed(s.index), dtype=torch.uint8)
        for s in specs
    ]
    return ClipBatch(index=torch.tensor(list(ids)), pixels=torch.stack(rows), layout=square(specs), specs=specs)


def square(specs: Sequence[ClipSpec]) -> Tensor:
    """Layouts of BT.601 clips in limited range that fill their canvas."""
    return torch.tensor([Layout(0, 0, *s.window.canvas, 0) for s in specs], dtype=torch.int32)


def made_stream(run: RunConfig, *, rank: int = 0, world: int = 1, start: int = 0) -> Iterator[ClipBatch]:
    for step in range(start, run.train.steps):
        for micro in range(run.train.accumulation):
            yield made_clips(run, micro_batch_ids(run, world=world, rank=rank, step=step, micro=micro))


def take_step(engine: Any, run: RunConfig, step: int, *, spoil: str = "", stop: bool = False) -> tuple[Step, float]:
    """One step on this rank's clips, and its loss; the last rank's first micro-batch may be spoiled."""
    total = 0.0
    for micro in range(run.train.accumulation):
        clips = made_clips(run, micro_batch_ids(run, world=engine.world, rank=engine.rank, step=step, micro=micro))
        splits = splits_for(run, step=step, specs=clips.specs)
        prediction = engine.forward(to_views(clips, run, device="cpu"), splits, clips.index)
        loss = score(prediction, run.objective).loss / run.train.accumulation
        total += loss.item()
        if spoil and micro == 0 and engine.rank == engine.world - 1:
            loss = _spoiled(loss, spoil, prediction.terms[0].prediction)
        engine.backward(loss)
    clip = clip_norm(run, step)
    return engine.step(lr=1e-3, weight_decay=0.04, momentum=0.9, clip=clip, stop=stop), total


def snapshot(engine: Any) -> dict[str, Tensor]:
    """Everything that a step may change on this rank."""
    state = {f"{p.kind} {p.name} {p.start}": p.data.clone() for p in engine._pieces()}
    here = Partition(engine.rank, engine.world)
    return state | {f"live {name}": here.share(p).clone() for name, p in engine.jepa.named_parameters()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit-equal."""
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


def _spoiled(loss: Tensor, how: str, output: Tensor) -> Tensor:
    match how:
        case "nan loss":
            return loss * float("nan")
        case "nan loss with finite gradients":
            return loss + float("nan")
        case "inf loss":
            return loss + float("inf")
        case "inf gradient":
            output.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
            return loss
        case _:
            return loss * 1e9

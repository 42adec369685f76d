"""Views of a batch: draws their numbers, and hands these with the bytes to the device."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rayjepa.config import RunConfig
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Layout
from rayjepa.views.colour import MEAN, STD, Jitter, affines
from rayjepa.views.draw import Crop, Draw, drawn, factors
from rayjepa.views.render import Canvas, cropped, shipped


def to_views(batch: ClipBatch, run: RunConfig, *, device: torch.device | str) -> Float[Tensor, "B 3 T H W"]:
    """The training view of each clip as normalised RGB in float32 on `device`, flipped where its spec says so.

    Where the decoder ships the whole frame, this is the random-resized crop by the law that the decoder else follows,
    drawn from the view seed; of a clip for evaluation, the largest centred square.
    Units:   T frames of H x W = data.size_px pixels; a value is (colour in [0, 1] - MEAN) / STD.
    """
    device, window = torch.device(device), batch.specs[0].window
    if window.kind == "whole":
        crop = Crop(number=0, size_px=run.data.size_px, scale=window.scale, aspect=window.aspect, colour=run.views)
        draws = [[drawn(spec, layout, crop)._replace(flip=float(spec.flip))] for spec, layout in _clips(batch)]
        return _crops(batch, [crop], draws, device)[0]
    jitter, everything = Jitter.of(run.views), (0, 0, window.size_px, window.size_px)
    draws = [[Draw(everything, float(spec.flip), factors(spec, 0, run.views))] for spec in batch.specs]
    table = _sent(numbers(batch, draws, [jitter]), device)
    with torch.autocast(device.type, enabled=False):  # whoever calls this, colours stay exact
        return _on(device, shipped)(_sent(batch.pixels, device), table, canvas(batch), jitter)


def crops(
    batch: ClipBatch, wanted: Sequence[Crop], *, device: torch.device | str
) -> list[Float[Tensor, "B 3 T size size"]]:
    """One tensor of normalised RGB per crop of `wanted`, in its order, from one copy of the clips to `device`.

    Crops that share size, kernel and kinds of jitter are made together. None is flipped but by its own draw.
    """
    draws = [[drawn(spec, layout, crop) for crop in wanted] for spec, layout in _clips(batch)]
    return _crops(batch, wanted, draws, torch.device(device))


def _crops(
    batch: ClipBatch, wanted: Sequence[Crop], draws: Sequence[Sequence[Draw]], device: torch.device
) -> list[Tensor]:
    kinds = [(crop.size_px, crop.kernel, Jitter.of(crop.colour)) for crop in wanted]
    order = sorted(range(len(wanted)), key=lambda i: kinds[i])
    table = numbers(batch, [[row[i] for i in order] for row in draws], [kinds[i][2] for i in order])
    pixels, table, views = _sent(batch.pixels, device), _sent(table, device), dict[int, Tensor]()
    with torch.autocast(device.type, enabled=False):
        for (size, kernel, jitter), members in itertools.groupby(order, key=lambda i: kinds[i]):
            group = tuple(members)
            rows = table[:, len(views) : len(views) + len(group)]
            made = _on(device, cropped)(pixels, rows, canvas(batch), jitter, size=size, kernel=kernel)
            views.update(zip(group, made.unbind(1), strict=True))
    return [views[i] for i in range(len(wanted))]


def _clips(batch: ClipBatch) -> list[tuple[ClipSpec, Layout]]:
    return [(spec, Layout(*row)) for spec, row in zip(batch.specs, np.asarray(batch.layout).tolist(), strict=True)]


def canvas(batch: ClipBatch) -> Canvas:
    """How to read the bytes of all of the batch's clips."""
    spec = batch.specs[0]
    shape = (spec.frames, spec.window.kind, spec.window.canvas, spec.pixels)
    assert all((s.frames, s.window.kind, s.window.canvas, s.pixels) == shape for s in batch.specs), (
        "a batch holds clips of one shape"
    )
    return Canvas(spec.pixels, spec.frames, *spec.window.canvas)


def numbers(batch: ClipBatch, draws: Sequence[Sequence[Draw]], jitters: Sequence[Jitter]) -> Float[Tensor, "B n 36"]:
    """All that the device must know of n views of each clip: a row of `Numbers` each.

    Jitter wants colours in [0, 1] and is followed by normalisation; without it, one sum makes normalised colours of
    bytes.
    """
    layout, mean, std = np.asarray(batch.layout), np.array(MEAN), np.array(STD)
    gain, shift = 1 / std, -mean / std
    table = np.empty((len(draws), len(jitters), 36), dtype=np.float32)
    is_late = np.array([any(jitter) for jitter in jitters], dtype=bool)
    for late in np.unique(is_late):
        affine = affines(batch.specs[0].pixels, layout, normalised=not late)
        bounds = (np.zeros(3), np.ones(3)) if late else (shift, gain + shift)
        table[:, is_late == late, :12] = affine.reshape(-1, 1, 12)
        table[:, is_late == late, 12:24] = np.concatenate((*bounds, gain, shift))
    table[:, :, 24:27] = layout[:, None, 2:]
    table[:, :, 27:] = [[(*draw.box, draw.flip, *draw.factors) for draw in row] for row in draws]
    return torch.from_numpy(table)  # pyright: ignore[reportUnknownMemberType]  # untyped in PyTorch


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy from pinned memory does not hold the CPU up, one from ordinary memory does."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _on(device: torch.device, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return _compiled(function) if device.type == "cuda" else function


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Any:
    """Fused by the compiler, which needs Triton and a C compiler; TORCH_COMPILE_DISABLE=1 runs it as it is written."""
    return torch.compile(function, fullgraph=True)  # pyright: ignore[reportUnknownMemberType]  # untyped in PyTorch

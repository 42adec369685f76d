"""The tensor part of a view: no branch on data, no copy from or to the CPU, so that each function compiles as one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from rayjepa.data.clip import Pixels
from rayjepa.views.colour import Jitter, jittered
from rayjepa.views.resample import Filter, doubled, resampled, weights


class Canvas(NamedTuple):
    """How to read the bytes of a clip."""

    pixels: Pixels
    frames: int
    height: int
    width: int


class Numbers(NamedTuple):
    """Of each view of each clip, one row."""

    affine: Tensor
    """(12): a matrix of 3 x 4, RGB as sums of the bytes of three planes and of 1."""
    low: Tensor
    """(3): least red, green and blue."""
    high: Tensor
    """(3)"""
    gain: Tensor
    """(3): normalises what was jittered."""
    shift: Tensor
    """(3)"""
    content: Tensor
    """(3): height, width, and 1 if transposed."""
    box: Tensor
    """(4): left, top, width and height in the canvas."""
    flip: Tensor
    """(1)"""
    factors: Tensor
    """(4): of colour jitter."""

    @classmethod
    def of(cls, numbers: Float[Tensor, "*views 36"]) -> "Numbers":
        """Columns by name."""
        widths = (12, 3, 3, 3, 3, 3, 4, 1, 4)
        return cls(*numbers.split(widths, dim=-1))  # pyright: ignore[reportUnknownMemberType]  # untyped in PyTorch


def shipped(
    pixels: UInt8[Tensor, "B nbytes"], numbers: Float[Tensor, "B 1 36"], canvas: Canvas, jitter: Jitter
) -> Float[Tensor, "B 3 T H W"]:
    """Views that are just what was shipped; flipped as bytes, which is the cheapest."""
    n = Numbers.of(numbers[:, 0])
    kind, frames, height, width = canvas
    affine = n.affine.view(-1, 3, 4, 1, 1, 1)
    if kind == "rgb":
        packed = pixels.view(-1, frames, height, width, 3).permute(0, 4, 1, 2, 3)
        levels = _flipped(packed, n.flip).float()
        rgb = torch.addcmul(affine[:, :, 3], levels, torch.diagonal(affine[:, :, :3], dim1=1, dim2=2).movedim(-1, 1))
    else:
        luma, chroma = _planes(pixels, canvas)
        u, v = _flipped(chroma, n.flip).float()[:, None].unbind(3)
        half = torch.addcmul(torch.addcmul(affine[:, :, 3], u, affine[:, :, 1]), v, affine[:, :, 2])
        full = F.interpolate(half.flatten(0, 1), scale_factor=2, mode="bilinear").view(-1, 3, frames, height, width)
        rgb = full.addcmul_(_flipped(luma, n.flip).float()[:, None], affine[:, :, 0])  # in place: fresh pages are slow
    return _finished(rgb, n, jitter)


def cropped(
    pixels: UInt8[Tensor, "B nbytes"],
    numbers: Float[Tensor, "B n 36"],
    canvas: Canvas,
    jitter: Jitter,
    *,
    size: int,
    kernel: Filter,
) -> Float[Tensor, "B n 3 T size size"]:
    """Views that are crops, each plane resampled by itself: sums of planes and sums of pixels can be exchanged.

    So this is what F.interpolate(antialias=True) makes of the cut-out RGB, but for colours outside [0, 1], which
    are cut off once, at the end. Two planes of I420 are a quarter of the first: it costs 0.7 of what RGB would.
    """
    n = Numbers.of(numbers)
    kind, frames, height, width = canvas
    transposed, flip = n.content[..., 2], n.flip[..., 0]
    rows = weights(n.box[..., 1::2], flip * transposed, size=size, length=height, kernel=kernel)
    columns = weights(n.box[..., 0::2], flip * (1 - transposed), size=size, length=width, kernel=kernel)
    if kind == "rgb":
        packed = pixels.view(-1, frames, height, width, 3).permute(0, 4, 1, 2, 3).float()
        planes = resampled(packed.flatten(1, 2), rows, columns).chunk(3, dim=3)
    else:
        luma, chroma = _planes(pixels, canvas)
        half_rows = rows @ doubled(n.content[..., 0], length=height)
        half_columns = columns @ doubled(n.content[..., 1], length=width)
        u_and_v = resampled(chroma.transpose(1, 2).flatten(1, 2).float(), half_rows, half_columns)
        planes = (resampled(luma.float(), rows, columns), *u_and_v.chunk(2, dim=3))
    affine = n.affine.view(*n.affine.shape[:2], 3, 4, 1, 1, 1)
    rgb = affine[:, :, :, 3]
    for i, plane in enumerate(planes):  # each (B, n, columns, T, rows)
        rgb = torch.addcmul(rgb, plane[:, :, None], affine[:, :, :, i])
    turned = transposed[..., None, None, None, None] > 0
    upright = torch.where(turned, rgb.permute(0, 1, 2, 4, 3, 5), rgb.permute(0, 1, 2, 4, 5, 3))
    each = Numbers(*(column.flatten(0, 1) for column in n))
    return _finished(upright.flatten(0, 1), each, jitter).view_as(upright)


def _planes(
    pixels: UInt8[Tensor, "B nbytes"], canvas: Canvas
) -> tuple[UInt8[Tensor, "B T H W"], UInt8[Tensor, "B T 2 h w"]]:
    """Luma and chroma of I420: each frame is all of Y, then U, then V at half the height and half the width."""
    _, frames, height, width = canvas
    planes = pixels.view(-1, frames, height * width * 3 // 2)
    luma = planes[:, :, : height * width].view(-1, frames, height, width)
    return luma, planes[:, :, height * width :].view(-1, frames, 2, height // 2, width // 2)


def _finished(rgb: Float[Tensor, "V 3 T H W"], n: Numbers, jitter: Jitter) -> Float[Tensor, "V 3 T H W"]:
    """`rgb` within its bounds, jittered and normalised."""
    low, high, gain, shift = (bound.view(-1, 3, 1, 1, 1) for bound in (n.low, n.high, n.gain, n.shift))
    rgb = rgb.clamp_(low, high)
    return torch.addcmul(shift, jittered(rgb, n.factors, jitter), gain) if any(jitter) else rgb


def _flipped(x: Tensor, flip: Tensor) -> Tensor:
    """`x` (B, …, W) mirrored left to right in the rows that `flip` marks."""
    return torch.where(flip.view(-1, *[1] * (x.dim() - 1)) > 0, x.flip(-1), x)

"""From decoded bytes to what the encoder sees, on the device: colour, flip, normalisation."""

from typing import assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from rayjepa.data.batch import ClipBatch

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue in [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue."""

KR, KB = 0.299, 0.114
"""Weights of red and blue in BT.601's luma."""


def to_views(batch: ClipBatch, *, device: torch.device | str) -> Float[Tensor, "B 3 T H W"]:
    """The batch's clips as normalised RGB in float32 on `device`, flipped where their specs say so.

    Units:   T frames of H x W pixels; a value is (colour in [0, 1] - MEAN) / STD.
    """
    spec = batch.specs[0]
    shape = (spec.frames, spec.window.size_px, spec.pixels)
    assert all((s.frames, s.window.size_px, s.pixels) == shape for s in batch.specs), "a batch holds clips of one shape"
    pixels = batch.pixels.to(device, non_blocking=True)
    flip = torch.tensor([s.flip for s in batch.specs]).to(device, non_blocking=True)
    match spec.pixels:
        case "i420":
            rgb = _from_i420(pixels, flip, frames=spec.frames, size=spec.window.size_px)
        case "rgb":
            packed = pixels.view(-1, spec.frames, spec.window.size_px, spec.window.size_px, 3)
            rgb = _flipped(packed.permute(0, 4, 1, 2, 3), flip).float() / 255
        case _ as unreachable:
            assert_never(unreachable)
    mean, std = (torch.tensor(c, device=rgb.device).view(3, 1, 1, 1) for c in (MEAN, STD))
    return (rgb - mean) / std


def _from_i420(
    pixels: UInt8[Tensor, "B nbytes"], flip: Tensor, *, frames: int, size: int
) -> Float[Tensor, "B 3 T H W"]:
    """RGB in [0, 1] of planar frames: each is all of Y, then U, then V at half the side.

    Chroma is interpolated bilinearly between the centres of its 2x2 cells; colours are BT.601 in limited range, as
    swscale assumes where a stream does not say.
    """
    planes = pixels.view(-1, frames, size * size * 3 // 2)
    luma = _flipped(planes[:, :, : size * size].reshape(-1, frames, size, size), flip)
    half = _flipped(planes[:, :, size * size :].reshape(-1, frames, 2, size // 2, size // 2), flip)
    chroma = F.interpolate(half.flatten(0, 1).float(), scale_factor=2, mode="bilinear")
    chroma = (chroma.view(-1, frames, 2, size, size) - 128) / 224
    luma, blue, red = (luma.float() - 16) / 219, chroma[:, :, 0], chroma[:, :, 1]
    r = luma + 2 * (1 - KR) * red
    b = luma + 2 * (1 - KB) * blue
    g = (luma - KR * r - KB * b) / (1 - KR - KB)
    return torch.stack((r, g, b), dim=1).clamp_(0, 1)


def _flipped(x: Tensor, flip: Tensor) -> Tensor:
    """`x` (B, …, W) mirrored left to right in the rows that `flip` marks."""
    return torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)

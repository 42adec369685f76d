"""Crops and sizes on the device, antialiased: two products with the weights of rows and of columns."""

from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

Filter = Literal["bilinear", "bicubic"]


def weights(
    box: Float[Tensor, "B n 2"], mirrored: Float[Tensor, "B n"], *, size: int, length: int, kernel: Filter
) -> Float[Tensor, "B n size length"]:
    """How much of each of `length` rows goes into each of `size`, for the rows that `box` cuts out; columns alike.

    Units:   `box` is first row and number of rows in pixels; `mirrored` is 1 where the result runs backwards, else 0.
    Source:  torch.nn.functional.interpolate(mode=kernel, antialias=True), equal to 1e-4 of white: the kernel is
             stretched when the picture shrinks, and cut off at the edges of the box.
    """
    first, cut = box[..., 0, None, None], box[..., 1, None, None]
    out = torch.arange(size, device=box.device, dtype=box.dtype)
    out = torch.where(mirrored[..., None] > 0, size - 1 - out, out)[..., None]
    pixel = torch.arange(length, device=box.device, dtype=box.dtype) - first
    scale = cut / size
    distance = ((pixel + 0.5 - scale * (out + 0.5)) / scale.clamp(min=1)).abs()
    weight = torch.where((pixel >= 0) & (pixel < cut), _kernel(distance, kernel), 0)
    return weight / weight.sum(-1, keepdim=True)


def _kernel(x: Tensor, kernel: Filter) -> Tensor:
    match kernel:
        case "bilinear":
            return (1 - x).clamp(min=0)
        case "bicubic":  # Keys' with a = -1/2, as Pillow and PyTorch antialias; without antialias PyTorch has -3/4
            near = (1.5 * x - 2.5) * x * x + 1
            far = ((-0.5 * x + 2.5) * x - 4) * x + 2
            return torch.where(x < 1, near, torch.where(x < 2, far, 0))
        case _ as unreachable:
            assert_never(unreachable)


def doubled(content: Float[Tensor, "B n"], *, length: int) -> Float[Tensor, "B n length half"]:
    """How much of each row of a plane at half height goes into each of `length` rows: bilinear between centres.

    Rows past `content` are no neighbours: the last row of content is repeated.
    """
    pixel = torch.arange(length, device=content.device, dtype=content.dtype)
    last = content[..., None] / 2 - 1
    at = torch.minimum((pixel / 2 - 0.25).clamp(min=0), last)[..., None]
    return (1 - (at - torch.arange(length // 2, device=content.device, dtype=content.dtype)).abs()).clamp(min=0)


def resampled(
    planes: Float[Tensor, "B P H W"], rows: Float[Tensor, "B n h H"], columns: Float[Tensor, "B n w W"]
) -> Float[Tensor, "B n w P h"]:
    """`rows` @ plane @ `columns`ᵀ for each of P planes and n crops; axes in the order that needs no copy between.

    Where float32 products may be TF32, a value is off by 0.4 grey levels at most (estimated: 10 bits of mantissa).
    """
    batch, crops, width, _ = columns.shape
    count, height = planes.shape[1:3]
    across = columns.flatten(1, 2) @ planes.flatten(1, 2).mT
    down = across.view(batch * crops, width * count, height) @ rows.flatten(0, 1).mT
    return down.view(batch, crops, width, count, -1)

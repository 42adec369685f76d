"""A fixed code of sines and cosines for the place of each token."""

from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from rayjepa.model.places import Grid

Axes = Literal["equal", "time_half"]


def sincos(
    coordinates: Float[Tensor, "*b N 3"], *, width: int, base: Grid, axes: Axes = "equal"
) -> Float[Tensor, "*b N {width}"]:
    """The code of tokens at `coordinates`, in steps of the grid `base`; taken in float64, given in float32.

    Between the steps of `base` the codes of its own steps are interpolated, and none lies beyond its ends: as when the
    table of `base` is resized. A video's is resized linearly, an image's (T = 1), which has two axes, cubically.
    Source:  V-JEPA's implementation: (time, height, width) with ceil(D/6)*2 channels each, cut to D ("equal", its
             uniform_power), or with D/2, D/4, D/4 ("time_half"); I-JEPA's: (width, height) with D/2 each. Of an axis
             with m channels the first half are sines and the second cosines, of frequencies 10000^(-k/(m/2)).
             An axis is coded alone, so that resizing a table in two or three dimensions is resizing along each.
    """
    time, height, width_ = coordinates.double().unbind(-1)
    if base[0] == 1:
        parts = [_axis(at, width // 2, n, cubic=True) for at, n in ((width_, base[2]), (height, base[1]))]
    else:
        third = -(-width // 6) * 2
        each = (width // 2, width // 4, width // 4) if axes == "time_half" else (third, third, third)
        parts = [_axis(*part, cubic=False) for part in zip((time, height, width_), each, base, strict=True)]
    return torch.cat(parts, dim=-1)[..., :width].float()


def _axis(at: Float64[Tensor, "*b N"], channels: int, steps: int, *, cubic: bool) -> Float64[Tensor, "*b N m"]:
    """The code along one axis of `steps` places, at `at`."""
    assert channels % 2 == 0, f"an axis of {channels} channels cannot be half sines and half cosines"
    rates = 10000.0 ** -(torch.arange(channels // 2, dtype=torch.float64, device=at.device) / (channels / 2))
    code = torch.zeros((), dtype=torch.float64, device=at.device)
    for place, weight in _neighbours(at, steps, cubic=cubic):
        angles = place.unsqueeze(-1) * rates
        code = code + weight.unsqueeze(-1) * torch.cat((angles.sin(), angles.cos()), dim=-1)
    return code


def _neighbours(
    at: Float64[Tensor, "*b N"], steps: int, *, cubic: bool
) -> list[tuple[Int64[Tensor, "*b N"], Float64[Tensor, "*b N"]]]:
    """Places 0 … steps - 1 around `at`, each with its weight.

    Source:  torch.nn.functional.interpolate without aligned corners: linear, and cubic convolution with a = -3/4.
    """
    if not cubic:
        at = at.clamp(0, steps - 1)
        low = at.floor()
        share = at - low
        weighted = [(low, 1 - share), (low + 1, share)]
    else:
        low, a = at.floor(), -0.75
        weighted: list[tuple[Tensor, Tensor]] = []
        for tap in (-1, 0, 1, 2):
            far = (at - low - tap).abs()
            near = ((a + 2) * far - (a + 3)) * far * far + 1
            outer = ((far - 5) * far + 8) * far * a - 4 * a
            weighted.append((low + tap, near if tap in (0, 1) else outer))
    return [(place.clamp(0, steps - 1).long(), weight) for place, weight in weighted]

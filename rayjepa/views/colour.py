"""Colours on the device: from the bytes of a frame to RGB, normalised, and colour jitter."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int32
from torch import Tensor

from rayjepa.config import ViewsConfig
from rayjepa.data.clip import MATRICES, Pixels

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of red, green and blue in [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of red, green and blue."""

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Weights of red and blue in luma. Source: ITU-R BT.601-7, BT.709-6, BT.2020-2 (non-constant luminance)."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of a grey picture as torchvision rounds them."""


class Jitter(NamedTuple):
    """Of each kind of colour jitter whether it is on; the order is that in which they are applied."""

    brightness: bool = False
    contrast: bool = False
    saturation: bool = False
    hue: bool = False

    @classmethod
    def of(cls, cfg: ViewsConfig) -> "Jitter":
        """What `cfg` asks for."""
        return cls(cfg.brightness > 0, cfg.contrast > 0, cfg.saturation > 0, cfg.hue > 0)


def rgb_of_yuv(matrix: str, *, full_range: bool) -> Float64[np.ndarray, "3 4"]:
    """Red, green and blue in [0, 1] as sums of the bytes Y, U and V and, in the last column, of 1."""
    red, blue = LUMA[matrix]
    green = 1 - red - blue
    linear = np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
    black, luma, chroma = (0, 255, 255) if full_range else (16, 219, 224)
    linear = linear / (luma, chroma, chroma)
    return np.column_stack((linear, -linear @ (black, 128, 128)))


YUV = np.array([[rgb_of_yuv(matrix, full_range=full) for full in (False, True)] for matrix in MATRICES])
"""By `Layout.matrix` and `Layout.full_range`."""


def affines(pixels: Pixels, layout: Int32[np.ndarray, "B 5"], *, normalised: bool) -> Float64[np.ndarray, "B 3 4"]:
    """For each clip, RGB as sums of the bytes of its three planes and of 1.

    Units:   colours in [0, 1], or `normalised`: (colour - MEAN) / STD.
    """
    rgb = YUV[layout[:, 0], layout[:, 1]] if pixels == "i420" else np.tile(np.eye(3, 4) / 255, (len(layout), 1, 1))
    if normalised:
        rgb = rgb / np.array(STD)[:, None]
        rgb[:, :, 3] -= np.array(MEAN) / STD
    return rgb


def jittered(
    x: Float[Tensor, "V 3 T H W"], factors: Float[Tensor, "V 4"], jitter: Jitter
) -> Float[Tensor, "V 3 T H W"]:
    """`x` with the kinds of `jitter` that are on, in the order of its fields; a factor of 1 (hue: 0) changes nothing.

    Units:   colours in [0, 1], here and after every kind; hue in turns of the colour wheel.
    Source:  adjust_brightness, adjust_contrast (towards the mean of each frame), adjust_saturation and adjust_hue of
             torchvision.transforms.functional, whose ColorJitter shuffles the kinds.
    """
    kinds: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
    for i, (kind, is_on) in enumerate(zip(kinds, jitter, strict=True)):
        if is_on:
            x = kind(x, factors[:, i].view(-1, 1, 1, 1, 1))
    return x


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).mean((-2, -1), keepdim=True), x, factor).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor).clamp(0, 1)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """Through the hexcone of HSV: v - c*f((5, 3, 1) + 6h), where f rises from 0 to 1, rests and falls again."""
    r, g, b = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    span = torch.where(chroma > 0, chroma, 1)
    sector = torch.where(value == r, (g - b) / span, torch.where(value == g, 2 + (b - r) / span, 4 + (r - g) / span))
    sector = sector + 6 * turn[:, 0]
    at = [torch.remainder(sector + first, 6) for first in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in at], dim=1)


def _grey(x: Tensor) -> Tensor:
    return (GREY[0] * x[:, 0] + GREY[1] * x[:, 1] + GREY[2] * x[:, 2])[:, None]

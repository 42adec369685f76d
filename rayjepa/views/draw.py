"""What is random in a view, as numbers on the CPU: a function of a clip's view seed and the crop's number alone."""

import hashlib
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from rayjepa.config import ViewsConfig
from rayjepa.data.clip import ClipSpec, Layout, Window
from rayjepa.data.crop import Box, crop_box
from rayjepa.views.resample import Filter


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One view of what was shipped: a random-resized crop by the law of `crop_box`, the same for all frames."""

    number: int
    """Key of the draw beside the clip's view seed, at least 0; the training view of whole frames is number 0."""
    size_px: int
    """Side of the square view in pixels."""
    scale: tuple[float, float]
    """Share of the frame's area, lowest and highest, in (0, 1]."""
    aspect: tuple[float, float]
    """Width over height, lowest and highest, drawn log-uniformly."""
    flip: float = 0.0
    """Probability of a horizontal flip, in [0, 1]."""
    colour: ViewsConfig = field(default_factory=ViewsConfig)
    """Colour jitter of this crop."""
    kernel: Filter = "bicubic"


class Draw(NamedTuple):
    """One view of one clip."""

    box: Box
    """Left, top, width and height in the canvas, in pixels."""
    flip: float
    """1: mirrored left to right as displayed."""
    factors: tuple[float, float, float, float]
    """Of brightness, contrast, saturation and hue."""


def drawn(spec: ClipSpec, layout: Layout, crop: Crop) -> Draw:
    """The crop of this clip; of an evaluation clip (window seed -1) the largest centred square as it is."""
    words = _words(spec.view_seed, crop.number)
    is_random = spec.window.seed != -1
    window = Window(size_px=crop.size_px, scale=crop.scale, aspect=crop.aspect, seed=words[0] >> 1 if is_random else -1)
    width, height = (layout.height, layout.width) if layout.transposed else (layout.width, layout.height)
    x, y, w, h = crop_box(window, width, height)
    return Draw(
        box=(y, x, h, w) if layout.transposed else (x, y, w, h),
        flip=float(is_random and _unit(words[5]) < crop.flip),
        factors=factors(spec, crop.number, crop.colour),
    )


def factors(spec: ClipSpec, number: int, cfg: ViewsConfig) -> tuple[float, float, float, float]:
    """Factors of the colour jitter of crop `number`; those of an evaluation clip change nothing."""
    if spec.window.seed == -1:
        return 1.0, 1.0, 1.0, 0.0
    brightness, contrast, saturation, hue = (2 * _unit(word) - 1 for word in _words(spec.view_seed, number)[1:5])
    return (
        1 + cfg.brightness * brightness,
        1 + cfg.contrast * contrast,
        1 + cfg.saturation * saturation,
        cfg.hue * hue,
    )


def _words(seed: int, number: int) -> tuple[int, ...]:
    """Eight independent 64-bit words; view seeds are words of the tape's own, so they need no further key."""
    return struct.unpack("<8Q", hashlib.blake2b(struct.pack("<QQ", seed, number), person=b"view").digest())


def _unit(word: int) -> float:
    """A 64-bit word as a number in [0, 1), with the 53 bits that a float holds."""
    return (word >> 11) * 2.0**-53

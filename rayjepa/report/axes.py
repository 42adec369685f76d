"""Ticks, thinning, smoothing, and the two scales of a plot: pure functions of numbers."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Scale = Literal["linear", "log"]

GRAIN = 10_000
"""Side of the drawing's own square of coordinates: finer than the pixels of any screen."""
MOST_POINTS = 1500
"""Points of one drawn curve; two of them, lowest and highest, for each of 750 slots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """Steps from 0 to `last_step` by values from `low` to `high`, as whole coordinates from the top left."""

    last_step: float
    low: float
    high: float
    scale: Scale

    def x(self, step: int | float) -> int:
        """Distance from the left edge."""
        return round(GRAIN * step / self.last_step)

    def y(self, value: float) -> int:
        """Distance from the top edge, held within reach: a value far outside would overflow a drawing's numbers."""
        low, high = self.low, self.high
        if self.scale == "log":
            value, low, high = math.log10(max(value, 1e-300)), math.log10(low), math.log10(high)
        return round(GRAIN * min(max((high - value) / (high - low), -1.0), 2.0))

    def ticks(self) -> list[float]:
        """Values worth a label."""
        return log_ticks(self.low, self.high) if self.scale == "log" else nice_ticks(self.low, self.high)

    def step_ticks(self) -> list[int]:
        """Steps worth a label."""
        return [int(t) for t in nice_ticks(0.0, float(self.last_step)) if t == int(t)]


def axes_for(*, kept: Numbers, undone: Numbers, last_step: int | float, scale: Scale, from_zero: bool) -> Axes:
    """Axes that hold all of `kept`.

    `undone` widens them by at most the height of the rest, so that an attempt that blew up does not flatten what came
    of the run. On the log scale, values of 0 and below are left out.
    Shapes:  finite, any lengths, not both empty (nor without a positive value on the log scale).
    """
    if scale == "log":
        kept, undone = np.log10(kept[kept > 0]), np.log10(undone[undone > 0])
    if not len(kept):
        kept = undone
    low, high = float(kept.min()), float(kept.max())
    is_from_zero = from_zero and scale == "linear" and low >= 0
    if is_from_zero:
        low = 0.0
    if len(undone):
        height = max(high - low, 0.1 * abs(high))
        low, high = max(low - height, min(low, undone.min())), min(high + height, max(high, undone.max()))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a flat line: give it room above and below
        room = 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
    room = 0.05 * (high - low)
    low, high = (0.0 if is_from_zero and low >= 0 else low - room), high + room
    if scale == "log":
        low, high = 10**low, 10**high
    return Axes(last_step=float(last_step), low=float(low), high=float(high), scale=scale)


def nice_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten inside [low, high]; finite, low < high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(k * step, decimals) + 0.0 for k in range(first, last + 1)]


def log_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Powers of ten inside [low, high], or 1, 2, 5 times them, or plain ticks in a narrow range; 0 < low < high."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**e for e in exponents if low <= 10.0**e <= high]
    if len(powers) >= 3:
        return powers[:: math.ceil(len(powers) / most)]
    finer = [v for e in exponents for m in (1, 2, 5) if low <= (v := m * 10.0**e) <= high]
    return finer if len(finer) >= 3 else [t for t in nice_ticks(low, high, most=most) if t > 0]


def thin(x: Numbers, y: Numbers, *, most: int = MOST_POINTS) -> tuple[Numbers, Numbers]:
    """At most `most` of the points, in order: the lowest and the highest of each equal slot, so that no spike is lost.

    Shapes:  x and y (n,), finite, x rising; the two answers (m,) with m <= max(n, most).
    """
    if len(x) <= most:
        return x, y
    slots = np.array_split(np.arange(len(x)), most // 2)
    keep = np.unique([s[pick(y[s])] for s in slots for pick in (np.argmin, np.argmax)])
    return x[keep], y[keep]


def smooth(y: Numbers, *, window: int) -> Numbers:
    """Centred running mean over about `window` readings; at the ends over those there are."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)

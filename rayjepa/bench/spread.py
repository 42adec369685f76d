"""The middle of paired values and what a quarter of them lies below and above."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The median of paired values, and what a quarter of them lies below and above."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """That of `values`; none of none."""
    if not values:
        return None
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(median=median, low=low, high=high)

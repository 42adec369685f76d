"""How many clips of a step each stream has, and which place in its stream a sample has: functions of the step alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import NamedTuple


class Place(NamedTuple):
    """Where a sample of the run lies in its stream."""

    stream: int
    """Number of the stream."""
    number: int
    """Number of the sample in its stream, from the start of the run."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """The streams' shares of steps of `clips` samples, in multiples of `quantum`; each in a range of its own.

    After t steps there are t x clips / quantum multiples, and the streams take theirs one after the other: each the
    nearest number to its weight's share of what those before it have left. That number never falls as t grows, so that
    its difference from one step to the next is a quota: it needs no state, quotas of a step add up to it, and over time
    stream number k (from 0) has its share to within (k + 1) / 2 multiples. Where shares of a step are whole multiples,
    they are its quotas.
    """

    weights: tuple[int, ...]
    clips: int
    quantum: int

    @classmethod
    def of(cls, weights: Sequence[float], *, clips: int, quantum: int) -> "Quotas":
        """For weights as they are written: 0.1 is a tenth."""
        shares = [Fraction(str(weight)) for weight in weights]
        whole = lcm(*(share.denominator for share in shares))
        return cls(tuple(int(share * whole) for share in shares), clips, quantum)

    def before(self, step: int) -> tuple[int, ...]:
        """Samples of each stream in all steps before `step`."""
        left = step * self.clips // self.quantum
        weight = sum(self.weights)
        taken: list[int] = []
        for own in self.weights:
            count = (2 * left * own + weight) // (2 * weight)  # the nearest integer
            taken.append(count * self.quantum)
            left, weight = left - count, weight - own
        return tuple(taken)

    def step(self, step: int) -> tuple[int, ...]:
        """Samples of each stream in `step`, in the order of their ranges."""
        return tuple(after - before for before, after in zip(self.before(step), self.before(step + 1), strict=True))

    def place(self, index: int) -> Place:
        """Where sample `index` of the run lies in its stream."""
        if len(self.weights) == 1:
            return Place(0, index)
        step, inside = divmod(index, self.clips)
        for stream, (first, last) in enumerate(zip(self.before(step), self.before(step + 1), strict=True)):
            if inside < last - first:
                return Place(stream, first + inside)
            inside -= last - first
        raise AssertionError("quotas of a step add up to it")

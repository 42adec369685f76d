"""Random numbers that are a function of a key and a place alone, for all clips of a micro-batch at once."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, UInt32, UInt64
from numpy.typing import NDArray

from rayjepa.config import RunConfig
from rayjepa.data.clip import ClipSpec

Keys = UInt64[np.ndarray, " S"]

MEMBER, SIZE, POSITION, CONTEXT, ORDER = range(5)
"""What is drawn: the first number of every place."""
GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def keys_of(run: RunConfig, *, step: int, specs: Sequence[ClipSpec]) -> Keys:
    """The key of each sample's mask: its own seed, or its place's if masks.same_positions."""
    if not run.masks.same_positions:
        return np.array([spec.mask_seed & _WORD for spec in specs], dtype=np.uint64)
    places = [spec.index % run.train.clips % run.masks.group_size for spec in specs]
    return member_keys(run.seed, step=step, members=run.masks.group_size)[places]


def member_keys(seed: int, *, step: int, members: int) -> UInt64[np.ndarray, " {members}"]:
    """Keys of the members of the step's phantom group."""
    return words(step_key(seed), MEMBER, step, count=members)[0]


def step_key(seed: int) -> UInt64[np.ndarray, " 1"]:
    """The key of what all samples of a step share."""
    return np.array([seed & _WORD], dtype=np.uint64)


def uniform(keys: Keys, *place: int, count: int) -> Float64[np.ndarray, "S {count}"]:
    """Numbers in [0, 1) with the 53 bits that a float holds."""
    return (words(keys, *place, count=count) >> np.uint64(11)) * 2.0**-53


def words(keys: Keys, *place: int, count: int) -> UInt64[np.ndarray, "S {count}"]:
    """64-bit words; the words of one key and place differ from each other.

    Source:  SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its finaliser hashes the place, and is the generator.
    """
    state = _mix(keys)
    for number in place:
        state = _mix(state + np.uint64((number + 1) * GOLDEN & _WORD))
    return _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN))


def orders(keys: Keys, *place: int, counts: Sequence[int]) -> Iterator[UInt32[np.ndarray, " count"]]:
    """For each key as many 32-bit words as its count, no two alike: the order that they give to things is random.

    Source:  the two-round multiply and shift hash of least bias that C. Wellons' search found (hash-prospector); it
             takes half the time of `words`.
    """
    starts = words(keys, *place, count=1).astype(np.uint32)  # the lower half
    for start, count in zip(starts, counts, strict=True):
        x = start + np.arange(count, dtype=np.uint32)
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        yield x ^ (x >> np.uint32(15))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x

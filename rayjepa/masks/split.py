"""From chosen cells to token ids of one length: cut to a count, or padded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt32
from torch import Tensor

from rayjepa.masks.draws import ORDER, Keys, orders

Cells = Bool[np.ndarray, "S cells"]
Ids = Int64[Tensor, "S n"]
Valid = Bool[Tensor, "S n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Token ids of one mask type, rising along each row; tokens in neither are not used.

    Rows shorter than the longest are filled up with repeats of their last id, which `context_valid` and `target_valid`
    mark false: no token may attend to such a place, and no loss may count it. None: all places are tokens.
    """

    context: Int64[Tensor, "B C"]
    target: Int64[Tensor, "B M"]
    context_valid: Bool[Tensor, "B C"] | None = None
    target_valid: Bool[Tensor, "B M"] | None = None


def first(chosen: Cells, *, depth: int, count: int) -> Ids:
    """The first `count` ids of each sample's chosen tokens: its cells, each through `depth` time slots."""
    ids = np.empty((len(chosen), count), dtype=np.int64)
    for i, row in enumerate(_rows(chosen, depth)):
        ids[i] = row[:count]
    return torch.as_tensor(ids)


def some(chosen: Cells, *, depth: int, count: int, keys: Keys, place: tuple[int, ...]) -> Ids:
    """`count` ids of each sample's chosen tokens, a random choice by key and place."""
    lengths = depth * chosen.sum(axis=1)
    if lengths.max() == count:
        return first(chosen, depth=depth, count=count)
    ids = np.empty((len(chosen), count), dtype=np.int64)
    words = orders(keys, ORDER, *place, counts=lengths.tolist())
    for i, row in enumerate(_rows(chosen, depth)):
        ids[i] = row[np.flatnonzero(lowest(next(words), count))]
    return torch.as_tensor(ids)


def padded(chosen: Cells, *, depth: int) -> tuple[Ids, Valid | None]:
    """All ids of each sample's chosen tokens, filled up with the last one, and which are its own; none: all are."""
    lengths = depth * chosen.sum(axis=1)
    longest = int(lengths.max())
    ids = np.empty((len(chosen), longest), dtype=np.int64)
    for i, row in enumerate(_rows(chosen, depth)):
        ids[i, : row.size] = row
        ids[i, row.size :] = row[-1]
    own = None if lengths.min() == longest else torch.as_tensor(np.arange(longest) < lengths[:, None])
    return torch.as_tensor(ids), own


def lowest(words: UInt32[np.ndarray, " n"], count: int) -> Bool[np.ndarray, " n"]:
    """Which are the `count` smallest of words that all differ."""
    return words <= np.partition(words, count - 1)[count - 1]


def _rows(chosen: Cells, depth: int) -> Iterator[Int64[np.ndarray, " n"]]:
    """Ids of all chosen tokens of each sample, one sample at a time.

    An array of a whole micro-batch is so large that the kernel maps each anew, which takes longer than filling it.
    """
    slots = np.arange(depth)[:, None] * chosen.shape[1]
    for cells in chosen:
        yield (slots + np.flatnonzero(cells)).reshape(-1)

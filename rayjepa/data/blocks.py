"""How the tape is cut into blocks of a stream: each holds consecutive micro-batches of one rank."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from rayjepa.config import RunConfig, block_of


class Timing(NamedTuple):
    """What making a block took in its decode actor, in all."""

    decode_s: float
    """From when a decoder was free for it to when its clips were there, reads included."""
    idle_s: float
    """The decoder had stood still before, for want of something to decode."""
    cpu_s: float
    """CPU of the decoder's child."""
    read_s: float
    """Waiting for storage."""
    read_bytes: float
    """Read from remote storage or out of shards."""
    actor: float
    """Process that made it, as a number that no other has."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The samples of `run` from `start` on in blocks: number k is of rank k mod W, its group of micro-batches k div W.

    The tape deals micro-batches to W ranks in turn, and so does a stream its blocks: a rank gets what it would get one
    by one, in its order. A group has `size` micro-batches of each rank, the last one maybe fewer.
    Raises:  ValueError if `start` does not begin a step.
    """

    start: int
    micro_batch: int
    """Clips of a micro-batch."""
    ranks: int
    size: int
    """Micro-batches of a block."""
    micro_batches: int
    """Of one rank, in all."""

    @classmethod
    def of(cls, run: RunConfig, *, start: int, first: int = 0) -> "Blocks":
        """For a run that has the samples [first, first + run.samples)."""
        if start % run.train.clips:
            raise ValueError(f"start={start} does not begin a step of train.clips={run.train.clips} samples")
        left = first + run.samples - start
        return cls(start, run.micro_batch, run.ranks, block_of(run), left // (run.micro_batch * run.ranks))

    def __len__(self) -> int:
        return -(-self.micro_batches // self.size) * self.ranks

    def samples(self, number: int) -> Int64[np.ndarray, "m B"]:
        """Sample indices of a block: a row for each of its micro-batches.

        Raises:  IndexError if there is no such block.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} is not one of {len(self)}")
        group, rank = divmod(number, self.ranks)
        turns = np.arange(group * self.size, min((group + 1) * self.size, self.micro_batches), dtype=np.int64)
        firsts = self.start + (turns * self.ranks + rank) * self.micro_batch
        return firsts[:, None] + np.arange(self.micro_batch, dtype=np.int64)

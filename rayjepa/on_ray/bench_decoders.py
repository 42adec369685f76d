"""Decoders that take part in `bench feed`: the stream's own with a time stamp, slow ones, null ones, and one alone.

Free of torch, as the stream's decode actor is.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from rayjepa.bench.feed import SLOW_EVERY, SLOW_S, Arrival
from rayjepa.config import RunConfig
from rayjepa.data.blocks import Blocks
from rayjepa.data.clip import ClipSpec
from rayjepa.data.decoder import Decoded
from rayjepa.data.decoders import Decoders
from rayjepa.data.eras import open_tape
from rayjepa.on_ray.actor import Columns, DecodeActor, number_of


class StampedActor(DecodeActor):
    """The decode actor, with a column `made_s`: when the block was decoded."""

    def __call__(self, rows: Columns) -> Columns:
        columns = super().__call__(rows)
        return columns | {"made_s": np.full(len(columns["index"]), time.time())}


class SlowDecoders(Decoders):
    """Decoders that take SLOW_S longer for one clip in SLOW_EVERY."""

    def clips(self, specs: Sequence[ClipSpec], substitute: Callable[[int, int], ClipSpec]) -> Decoded:
        time.sleep(SLOW_S * sum(spec.index % SLOW_EVERY == SLOW_EVERY // 2 for spec in specs))
        return super().clips(specs, substitute)


class SlowActor(StampedActor):
    """The same with SlowDecoders."""

    def __init__(self, run: RunConfig, manifest_path: str, start: int, first: int = 0) -> None:
        super().__init__(run, manifest_path, start, first)
        self.decoders.__exit__(None, None, None)
        self.decoders = SlowDecoders(run).__enter__()


class NullActor:
    """Decodes nothing: its blocks hold their samples' indices and a few bytes for each."""

    def __init__(self, run: RunConfig, _: str, start: int, first: int = 0) -> None:
        self.blocks = Blocks.of(run, start=start, first=first)

    def __call__(self, rows: Columns) -> Columns:
        index = self.blocks.samples(number_of(rows)).ravel()
        made_s = np.full(len(index), time.time())
        return {"index": index, "pixels": np.zeros((len(index), 8), np.uint8), "made_s": made_s}


class Alone:
    """A decoder in a process of its own, as a decode actor has it, that drops what it decodes."""

    def __init__(self, run: RunConfig, manifest_path: str, place: int) -> None:
        self.run, self.place = run, place
        self.tape = open_tape(run, Path(manifest_path))
        self.decoders = Decoders(run).__enter__()

    def ready(self) -> None:
        """Returns once a clip was decoded."""
        self.decoders.clips([self.tape.spec(0)], self.tape.spec)

    def decode(self, for_s: float) -> list[Arrival]:
        """Every so many-th micro-batch of the tape, for `for_s` seconds."""
        made: list[Arrival] = []
        until_s = time.time() + for_s
        following = self._specs(0)
        for turn in count():
            specs, following = following, self._specs(turn + 1)
            self.decoders.expect(following)  # as the stream does for the block behind
            self.decoders.clips(specs, self.tape.spec)
            now_s = time.time()
            made.append(Arrival(clips=len(specs), made_s=now_s, arrived_s=now_s, waited_s=0.0))
            if now_s > until_s and turn >= 3:
                break
        return made

    def _specs(self, turn: int) -> list[ClipSpec]:
        size, number = self.run.micro_batch, self.place + turn * self.run.cluster.decoders
        return [self.tape.spec(i) for i in range(number * size, (number + 1) * size)]

    def close(self) -> None:
        """The child ends."""
        self.decoders.__exit__(None, None, None)

"""The trainers of `bench feed`: they take and drop, or sleep as if they computed, and note what came when."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjepa.bench.feed import Arrival
from rayjepa.config import RunConfig
from rayjepa.data.eras import open_tape
from rayjepa.on_ray.actor import Columns

if TYPE_CHECKING:
    from rayjepa.data.batch import ClipBatch


class Trainer:
    """One rank's end of a stream, in a process of its own."""

    def __init__(self) -> None:
        self._made: dict[int, float] = {}
        self._before_s = 0.0
        self._arrivals: Iterator[Arrival] = iter(())

    def open(self, split: Any, run: RunConfig, manifest_path: str, *, is_null: bool) -> float:
        """Take the first micro-batch; return the moment of its arrival. Of a null decoder clips stay as they come."""
        self._made.clear()
        self._before_s = time.time()
        if is_null:  # there are many: none of them is to load torch, which the stream's own end needs
            self._arrivals = self._raw(split.iter_batches(batch_size=None, batch_format="numpy"))
        else:
            from rayjepa.on_ray.stream import batches, taken

            blocks, tape = taken(split, run), open_tape(run, Path(manifest_path))
            self._arrivals = self._tensors(batches(self._watched(blocks), tape, micro_batch=run.micro_batch))
        return next(self._arrivals).arrived_s

    def drain(self, *, for_s: float, for_clips: int = 0) -> list[Arrival]:
        """What comes in `for_s` seconds of steady state, and `for_clips` clips at least, if nothing is done with it."""
        got: list[Arrival] = []
        until_s: float | None = None
        left = for_clips
        self._before_s = time.time()
        for arrival in self._arrivals:
            got.append(arrival)
            if until_s is None and arrival.made_s > got[0].arrived_s:
                until_s = arrival.arrived_s + for_s
            left -= arrival.clips if until_s is not None else 0
            if until_s is not None and arrival.made_s > until_s and left < 0:
                break
        return got

    def train(self, *, step_s: float, for_s: float, for_clips: int = 0) -> list[Arrival]:
        """What comes if each micro-batch is followed by `step_s` seconds of sleep."""
        got: list[Arrival] = []
        self._before_s = time.time()
        until_s, left = self._before_s + for_s, for_clips
        for arrival in self._arrivals:
            woken_s = arrival.arrived_s + step_s
            time.sleep(max(0.0, woken_s - time.time()))
            self._before_s = time.time()
            got.append(replace(arrival, slept_s=self._before_s - arrival.arrived_s))
            left -= arrival.clips
            if self._before_s > until_s and left <= 0:
                break
        return got

    def close(self) -> None:
        """Forget the stream, which ends with its last taker."""
        self._arrivals = iter(())

    def _watched(self, blocks: Iterable[Columns]) -> Iterator[Columns]:
        """The blocks, whose moments are noted."""
        for block in blocks:
            self._made.update(zip(block["index"].tolist(), block.pop("made_s").tolist(), strict=True))
            yield block

    def _tensors(self, found: Iterator["ClipBatch"]) -> Iterator[Arrival]:
        for clips in found:
            now_s, index = time.time(), clips.index.tolist()
            made_s = [self._made.pop(i) for i in index]
            yield Arrival(
                clips=len(index),
                made_s=made_s[0],
                arrived_s=now_s,
                waited_s=now_s - self._before_s,
                timing=clips.timing,
                transfer_s=clips.transfer_s,
            )
            self._before_s = max(self._before_s, now_s)

    def _raw(self, blocks: Iterable[Columns]) -> Iterator[Arrival]:
        for block in blocks:
            now_s = time.time()
            yield Arrival(
                clips=len(block["index"]),
                made_s=float(block["made_s"][0]),
                arrived_s=now_s,
                waited_s=now_s - self._before_s,
            )
            self._before_s = max(self._before_s, now_s)

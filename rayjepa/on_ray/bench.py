"""`rayjepa bench feed` on the connected cluster: decoders alone, a DataLoader and the stream, in interleaved rounds."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions

from rayjepa.bench import feed, feed_loader
from rayjepa.bench import feed_runs as runs
from rayjepa.bench.feed import Arrival, Ceiling, Measured, Part, Point, Rate, Round, SlowRound
from rayjepa.config import RunConfig, block_of, prefetch_of
from rayjepa.data import manifest
from rayjepa.data.manifest import Manifest
from rayjepa.data.twin import Twin
from rayjepa.on_ray.bench_decoders import Alone, NullActor, SlowActor, StampedActor
from rayjepa.on_ray.bench_trainers import Trainer
from rayjepa.on_ray.stream import stream
from rayjepa.on_ray.trainer import cause

PATIENCE_S = 600.0
"""For what takes some seconds on a quiet machine."""
SLOW_ROUNDS = 3
"""Rounds with slow clips at most: each is long, since it needs several slow ones."""


def measure(
    run: RunConfig,
    videos: Manifest | Twin,
    scratch: Path,
    *,
    parts: Sequence[Part],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Measured:
    """Each of `parts`, on the connected cluster; `run` is a `measured_run`, and `scratch` a folder that all nodes see.

    Raises:  RuntimeError if something does not answer, or its process dies.
    """
    path = scratch / "manifest.parquet"
    if isinstance(videos, Twin):
        manifest.copy(videos.path, path)
    else:
        manifest.write(videos, path)
    bench = _Bench(run, path, seconds=seconds, say=say)
    found = Measured(
        decoders=run.cluster.decoders,
        workers=run.ranks,
        micro_batch=run.micro_batch,
        block=block_of(run),
        prefetch=prefetch_of(run),
        clip_bytes=run.data.clip_bytes,
        cores=len(os.sched_getaffinity(0)),
    )
    try:
        if "ratios" in parts:
            with _loaded(found, "ratios"):
                found.rounds.extend(bench.round(turn) for turn in range(rounds))
        if "slow" in parts:
            with _loaded(found, "slow"):
                found.slow.extend(bench.slow(turn) for turn in range(min(rounds, SLOW_ROUNDS)))
        if "growth" in parts:
            with _loaded(found, "growth"):
                found.growth.update(bench.growth(scratch))
        if "ceiling" in parts:
            with _loaded(found, "ceiling"):
                found.ceiling.extend(bench.ceiling())
    except ray.exceptions.RayError as error:
        late = isinstance(error, ray.exceptions.GetTimeoutError)
        why = f"nothing came in {PATIENCE_S:g} s" if late else cause(error)
        raise RuntimeError(f"bench feed stopped: {why}; {os.getloadavg()[0]:.0f} processes want to run here") from error
    return found


@contextmanager
def _loaded(found: Measured, part: str) -> Iterator[None]:
    before = os.getloadavg()[0]
    yield
    found.loads[part] = before, os.getloadavg()[0]


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """A stream that its trainers have had a micro-batch of."""

    trainers: list[Any]
    first_s: float

    def drain(self, *, for_s: float, for_clips: int = 0) -> list[list[Arrival]]:
        own = -(-for_clips // len(self.trainers))
        asked = [trainer.drain.remote(for_s=for_s, for_clips=own) for trainer in self.trainers]
        return ray.get(asked, timeout=PATIENCE_S)

    def train(self, *, step_s: float, for_s: float, for_clips: int = 0) -> list[list[Arrival]]:
        own = -(-for_clips // len(self.trainers))
        asked = [trainer.train.remote(step_s=step_s, for_s=for_s, for_clips=own) for trainer in self.trainers]
        return ray.get(asked, timeout=PATIENCE_S)


class _Bench:
    """What is measured with one run and one manifest."""

    def __init__(self, run: RunConfig, path: Path, *, seconds: float, say: Callable[[str], None]) -> None:
        self.run, self.path, self.seconds, self.say = run, path, seconds, say
        self._trainers: list[Any] = []

    @contextmanager
    def opened(
        self, run: RunConfig, path: Path, decoder: type = StampedActor, *, is_null: bool = False
    ) -> Iterator[_Opened]:
        """A stream for as long as the block; its processes end with it, those of the trainers stay for the next."""
        actor: Any = ray.remote(Trainer)
        self._trainers += [actor.options(num_cpus=0).remote() for _ in range(run.ranks - len(self._trainers))]
        trainers = self._trainers[: run.ranks]
        ray.get([trainer.close.remote() for trainer in trainers], timeout=PATIENCE_S)  # they have started
        began = time.time()
        splits = stream(run, manifest_path=path, start=0, decoder=decoder).streaming_split(run.ranks, equal=True)
        asked = [
            trainer.open.remote(split, run, str(path), is_null=is_null)
            for trainer, split in zip(trainers, splits, strict=True)
        ]
        firsts = ray.get(asked, timeout=PATIENCE_S)
        try:
            yield _Opened(trainers, max(firsts) - began)
        finally:
            ray.get([trainer.close.remote() for trainer in trainers], timeout=PATIENCE_S)

    def alone(self, run: RunConfig, path: Path) -> Rate:
        """`cluster.decoders` decoders with nothing behind them."""
        actor: Any = ray.remote(Alone)
        decoders = [actor.options(num_cpus=0).remote(run, str(path), place) for place in range(run.cluster.decoders)]
        ray.get([decoder.ready.remote() for decoder in decoders], timeout=PATIENCE_S)
        made = ray.get([decoder.decode.remote(self.seconds) for decoder in decoders], timeout=PATIENCE_S)
        ray.get([decoder.close.remote() for decoder in decoders], timeout=PATIENCE_S)
        for decoder in decoders:
            ray.kill(decoder)
        return feed.rate(made)

    def round(self, turn: int) -> Round:
        """Decoders alone, a DataLoader and the stream, each first in every third round."""
        found: dict[str, Any] = {"waits": {}}

        def alone() -> None:
            found["alone"] = self.alone(self.run, self.path)

        def loader() -> None:
            found["loader"] = feed.rate([feed_loader.drain(self.run, self.path, for_s=self.seconds)])

        def streamed() -> None:
            with self.opened(self.run, self.path) as opened:
                taken = opened.drain(for_s=self.seconds)
                found["stream"], found["first_s"] = feed.rate(taken), opened.first_s
                found["fed"] = feed.feeding(taken, is_endless=True)
                for factor in feed.DEMANDS:
                    demand = found["stream"].arrived / factor
                    found["waits"][factor] = feed.waits(self._sleep(opened, demand, for_s=self.seconds), demand=demand)

        acts = [alone, loader, streamed]
        for act in acts[turn % 3 :] + acts[: turn % 3]:
            act()
        done = Round(**found)
        said = f"alone {done.alone.clips_per_s:.0f}, DataLoader {done.loader.clips_per_s:.0f}, stream "
        self.say(f"round {turn + 1}: {said}{done.stream.clips_per_s:.0f} clips/s")
        return done

    def _sleep(self, opened: _Opened, demand: float, *, for_s: float, for_clips: int = 0) -> list[list[Arrival]]:
        """What trainers get that take `demand` clips/s together, once what they hold ready is there."""
        step_s = self.run.micro_batch * self.run.ranks / demand
        time.sleep(min(20.0, 0.5 + 1.5 * prefetch_of(self.run) * step_s / feed.SLOW_DEMAND))
        return opened.train(step_s=step_s, for_s=for_s, for_clips=for_clips)

    def slow(self, turn: int) -> SlowRound:
        """Capacity with some slow clips in it, then waits at a demand below it, with prefetch as set and off."""
        clips = 2 * feed.SLOW_EVERY
        with self.opened(self.run, self.path, SlowActor) as opened:
            capacity = feed.rate(opened.drain(for_s=0.0, for_clips=clips)).arrived
            demand = capacity / feed.SLOW_DEMAND
            as_set = feed.waits(self._sleep(opened, demand, for_s=0.0, for_clips=clips), demand=demand)
        with self.opened(runs.with_block(runs.with_prefetch(self.run, feed.OFF), 1), self.path, SlowActor) as opened:
            off = feed.waits(self._sleep(opened, demand, for_s=0.0, for_clips=clips), demand=demand)
        self.say(f"slow clips, round {turn + 1}: {capacity:.0f} clips/s; waits {as_set.share:.1%}, off {off.share:.1%}")
        return SlowRound(capacity=capacity, as_set=as_set, off=off)

    def growth(self, scratch: Path) -> dict[str, list[Point]]:
        """The stream with more decode actors, larger clips, a longer manifest, more trainers; one at a time."""
        run, cores = self.run, len(os.sched_getaffinity(0))
        found: dict[str, list[Point]] = {"decode actors": [], "clip px": [], "manifest rows": [], "trainers": []}
        for actors in runs.actors():
            grown = runs.with_decoders(run, actors)
            crowded = actors + run.ranks > cores
            found["decode actors"].append(self._point(grown, self.path, actors, alone=True, crowded=crowded))
        for px in runs.SIZES_PX:
            if px % run.model.patch_px == 0:
                found["clip px"].append(self._point(runs.with_size(run, px), self.path, px, alone=True))
        videos = manifest.read(self.path)
        for rows in runs.ROWS:
            path = scratch / f"manifest-{rows}.parquet"
            manifest.write(repeated(videos, rows), path)
            found["manifest rows"].append(self._point(run, path, rows))
        for trainers in runs.TRAINERS:
            found["trainers"].append(self._point(runs.with_trainers(run, trainers), self.path, trainers))
        return found

    def _point(self, run: RunConfig, path: Path, at: int, *, alone: bool = False, crowded: bool = False) -> Point:
        with self.opened(run, path) as opened:
            streamed = feed.rate(opened.drain(for_s=self.seconds / 2)).clips_per_s
        rate = self.alone(run, path).clips_per_s if alone else None
        self.say(f"growth, {at:,}: {streamed:.0f} clips/s, first micro-batch after {opened.first_s:.1f} s")
        return Point(at=at, stream=streamed, alone=rate, first_s=opened.first_s, is_crowded=crowded)

    def ceiling(self) -> list[Ceiling]:
        """Blocks without pixels into trainers that drop them."""
        found: list[Ceiling] = []
        for trainers in runs.CEILING_TRAINERS:
            for block in runs.CEILING_BLOCKS:
                wide = runs.with_block(runs.with_trainers(self.run, trainers), block)
                with self.opened(wide, self.path, NullActor, is_null=True) as opened:
                    clips_per_s = feed.rate(opened.drain(for_s=self.seconds / 2)).clips_per_s
                blocks_per_s = clips_per_s / (block * wide.micro_batch)
                found.append(
                    Ceiling(trainers=trainers, block=block, blocks_per_s=blocks_per_s, clips_per_s=clips_per_s)
                )
            self.say(f"ceiling, {trainers} trainers: " + ", ".join(f"{c.blocks_per_s:.0f}" for c in found[-3:]))
        return found


def repeated(videos: Manifest, rows: int) -> Manifest:
    """A manifest of so many rows: those of `videos` over and over."""
    times = -(-rows // len(videos))
    return Manifest(pa.concat_tables([videos.table] * times).slice(0, rows))

"""The verb `transcode`: videos made anew for fast decoding, and their manifest."""

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np

from rayjepa.cli.videos import indexed
from rayjepa.config import RunConfig, resolve
from rayjepa.data import gain, manifest
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.sources import is_manifest
from rayjepa.data.manifest import Manifest
from rayjepa.data.recipe import Recipe
from rayjepa.data.transcode import MANIFEST, Outcome, Work, make, manifest_of, work_in

log = logging.getLogger(__name__)

LINE_S = 5.0
"""Seconds between lines of progress."""


def transcode(
    source: str, overrides: Mapping[str, object], *, out: Path, recipe: Recipe, labels: Path | None, clips: int
) -> int:
    """Make the videos of a manifest, or of anything that can be indexed, anew in `out`; print what it came to."""
    run = resolve(None, overrides)
    path = Path(source).expanduser()
    made_before = is_manifest(source)
    if made_before and labels is not None:
        raise ValueError(f"--labels goes with files to index; {source} is a manifest, which has its own")
    videos = manifest.read(path) if made_before else indexed(source, run.data, labels=labels)
    with work_in(out, videos, recipe, source=path if path.is_dir() else None) as work, _stop_on_sigterm():
        kept = len(work.settled)
        began = time.monotonic()
        try:
            _do(run, work, recipe)
        except KeyboardInterrupt:
            log.error(
                "stopped: %d of %d videos are settled; go on with the same command",
                len(work.settled),
                kept + len(work.jobs),
            )
            return 130
        made = manifest_of(videos, work)
        manifest.write(made, work.folder / MANIFEST)
    print("\n".join(_summary(videos, made, work, kept=kept, wall_s=time.monotonic() - began)))
    if not made.usable.any():
        raise RuntimeError(f"none of the {len(videos)} videos was made anew; {work.folder / MANIFEST} says why")
    print(_speed(run, videos, made, clips))
    print(f"wrote {work.folder / MANIFEST}; train on it with data.videos={work.folder / MANIFEST}")
    return 0


def _do(run: RunConfig, work: Work, recipe: Recipe) -> None:
    """Settle every job that is left."""
    total, done, last = len(work.jobs), 0, time.monotonic()
    if work.settled:
        log.info("%d videos are settled already, %d are left", len(work.settled), total)
    if not total:
        return
    with contextlib.closing(_outcomes(run, work, recipe)) as outcomes:
        for outcome in outcomes:
            work.settle(outcome)
            done += 1
            if not outcome.is_made:
                log.warning("%s: %s", outcome.uri, outcome.columns["reason"])
            if time.monotonic() - last >= LINE_S:
                last = time.monotonic()
                log.info("transcode: %d of %d videos", done, total)


def _outcomes(run: RunConfig, work: Work, recipe: Recipe) -> Generator[Outcome, None, None]:
    """What becomes of each job: in this process, one after the other, or on a cluster."""
    if run.cluster.workers == 0:
        with Decoder(run.data) as decoder:
            for job in work.jobs:
                yield make(decoder, job, folder=work.folder, recipe=recipe)
        return
    from rayjepa.on_ray.cluster import cluster

    # Nothing is trained: workers would only reserve CPUs.
    alone = dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, workers=0))
    with cluster(alone):
        from rayjepa.on_ray.transcode import outcomes

        log.info("%d videos; %d processes (cluster.decoders)", len(work.jobs), run.cluster.decoders)
        yield from outcomes(run, work.jobs, folder=work.folder, recipe=recipe)


def _summary(videos: Manifest, made: Manifest, work: Work, *, kept: int, wall_s: float) -> list[str]:
    """Lines of what was done and what it took."""
    good = made.usable
    before, after = (int(m.column("bytes").fill_null(0).to_numpy()[good].sum()) for m in (videos, made))
    cpu_s = sum(outcome.cpu_s for outcome in work.settled.values())
    shown_s = float(made.duration_s[good].sum())
    failed, bad = int((videos.usable & ~good).sum()), int((~videos.usable).sum())
    lines = [
        f"{int(good.sum())} videos made anew, {kept} of all settled earlier; {failed} failed, {bad} were bad before",
        f"size: {_size(before)} -> {_size(after)}, {_span(shown_s)} of video",
        f"CPU: {cpu_s / 3600:.3g} h in all, {cpu_s / max(shown_s, 1e-9):.3f} s for a second of video",
        f"time: {_span(wall_s)} of this call",
    ]
    if failed:
        reasons = made.column("reason").to_pylist()
        first = int(np.flatnonzero(videos.usable & ~good)[0])
        lines.append(f"first that failed: {videos.uri(first)}: {reasons[first]}")
    return lines


def _speed(run: RunConfig, videos: Manifest, made: Manifest, clips: int) -> str:
    """The line that says what a clip costs now and before."""
    pairs = gain.sample(run, videos, made, clips=clips)
    found = gain.measure(run, pairs) if pairs else None
    if found is None:
        return "speed-up: not measured: too few clips can be decoded from both"
    return (
        f"speed-up: {found.ratio:.2f} times less CPU a clip: {found.old_ms:.1f} -> {found.new_ms:.1f} ms, "
        f"{found.clips} clips of {run.data.frames} frames at {run.data.fps:g} fps, in turns"
    )


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _size(count: int) -> str:
    """Bytes for a person."""
    unit = min(int(np.log2(max(count, 1))) // 10, 3)
    return f"{count / 1024**unit:.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def _span(seconds: float) -> str:
    """A time for a person: of CPU, of video, or on the wall."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"

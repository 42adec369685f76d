"""The verb `bench feed`: how fast clips come to trainers, beside decoders alone and a DataLoader; what bounds it."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayjepa.bench.feed import PARTS, Part, figures
from rayjepa.bench.feed_chart import svg
from rayjepa.bench.feed_runs import measured_run, roomy
from rayjepa.bench.feed_text import text
from rayjepa.cli.videos import videos_of
from rayjepa.config import dump, resolve
from rayjepa.data.twin import in_memory


def feed(
    preset: str,
    overrides: Mapping[str, object],
    *,
    rounds: int,
    seconds: float,
    only: Sequence[Part],
    out: Path | None,
    plot: Path | None,
) -> int:
    """Print rates, ratios, waits, growth and ceiling of the stream, and in words what bounds it and what to turn."""
    if rounds < 1 or seconds <= 0:
        raise ValueError(f"--rounds {rounds} must be at least 1, and --seconds {seconds:g} above 0")
    if plot is not None and plot.suffix != ".svg":
        raise ValueError(f"--plot {plot}: the picture is an SVG; give a name that ends in .svg")
    asked = resolve(preset, overrides)
    if asked.cluster.workers == 0:
        raise ValueError("cluster.workers=0 has no stream to measure; bench feed needs at least 1")
    parts: list[Part] = [part for part in PARTS if part in only or not only]
    run = measured_run(asked, overrides)
    videos = in_memory(videos_of(asked))
    from rayjepa.on_ray.cluster import address_of, cluster

    elsewhere = address_of(asked) is not None  # then other nodes read the manifest too
    home = Path(asked.out).expanduser().absolute() if elsewhere else None
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rayjepa-bench-", dir=home) as scratch, cluster(roomy(run, parts)):
        from rayjepa.on_ray import bench

        if not elsewhere:  # twins of manifests that go with the scratch folder
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, scratch=f"{scratch}/node"))
        measured = bench.measure(run, videos, Path(scratch), parts=parts, rounds=rounds, seconds=seconds, say=_progress)
    print(text(measured, run))
    if out is not None:
        settings = {"preset": preset, "rounds": rounds, "seconds": seconds, "parts": parts}
        out.write_text(json.dumps({"settings": settings, **figures(measured), "run": dump(run)}, indent=1))
    if plot is not None:
        plot.write_text(svg(measured))
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

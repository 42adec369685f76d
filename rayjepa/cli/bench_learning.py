"""The verb `bench learning`: does a small run learn, over several seeds, beside a random encoder and a collapse."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rayjepa.cli.videos import videos_of
from rayjepa.config import dump, resolve
from rayjepa.data.twin import in_memory


def learning(
    preset: str,
    overrides: Mapping[str, object],
    *,
    seeds: str,
    bank: int,
    probed: int,
    twin_steps: int,
    out: Path | None,
    plot: Path | None,
) -> int:
    """Print probes and gauges of every seed; the status is 1 if a claimed margin does not hold."""
    if plot is not None and plot.suffix != ".svg":
        raise ValueError(f"--plot {plot}: the picture is an SVG; give a name that ends in .svg")
    chosen = _numbers(seeds)
    run = resolve(preset, {"train.engine": "plain", "cluster.workers": 0, **overrides})
    if run.streams or run.phases:
        raise ValueError("bench learning takes runs of one stream and one phase; leave streams and phases away")
    if bank < run.train.clips or probed < 1 or twin_steps < 1:
        raise ValueError(
            f"--bank {bank} must be at least train.clips={run.train.clips}; --probed {probed} and --twin-steps "
            f"{twin_steps} at least 1"
        )
    videos = in_memory(videos_of(run))
    from rayjepa.bench import learned, learning_chart
    from rayjepa.bench.learning import study

    load, began = os.getloadavg()[0], time.monotonic()
    cpu = time.process_time()
    trials = study(run, videos, seeds=chosen, bank=bank, probed=probed, twin_steps=twin_steps, say=_progress)
    took = {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "wall_s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
    }
    table = learned.rows(trials)
    clips = trials[0].probes["velocity/clip"].clips
    print(
        f"{run.train.steps} steps of {run.train.clips} clips, seeds {', '.join(map(str, chosen))}; probes tested on "
        f"{clips} clips of held-out videos\n{took['cores']} cores, load {load:.1f} before and "
        f"{took['load_after']:.1f} after; {took['wall_s']:.0f} s, {took['cpu_s']:.0f} s of CPU\n"
    )
    print(learned.text(trials, table))
    if out is not None:
        said = {"preset": preset, "bank": bank, "took": took, **learned.figures(trials, table), "run": dump(run)}
        out.write_text(json.dumps(said, indent=1))
    if plot is not None:
        plot.write_text(learning_chart.svg(trials, table))
    return 0 if all(learned.verdict(table).values()) else 1


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise ValueError(f"--seeds {text} must be whole numbers with commas between, none twice, such as 0,1,2")
    return [int(word) for word in words]


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

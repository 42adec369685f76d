"""The verb `bench step`: where a training step's time goes on this machine; needs neither Ray nor a decoder."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rayjepa.config import dump, resolve


def step(preset: str, overrides: Mapping[str, object], *, rounds: int, out: Path | None, plot: Path | None) -> int:
    """Print the parts of a step of one rank, its FLOP/s, and its ratio to a step of transformers' layers."""
    if rounds < 1:
        raise ValueError(f"--rounds {rounds} must be at least 1")
    if plot is not None and plot.suffix != ".svg":
        raise ValueError(f"--plot {plot}: the picture is an SVG; give a name that ends in .svg")
    # Transformers has this pairing only; ours costs the same with both.
    run = resolve(preset, {"train.engine": "plain", "model.rope_pairing": "tiled", **overrides})
    from rayjepa.bench import step_report
    from rayjepa.bench.step import measure
    from rayjepa.bench.step_ours import rank_share
    from rayjepa.train.engine import default_device

    load = os.getloadavg()[0]
    measured = measure(rank_share(run), rounds=rounds, device=default_device(), say=_progress)
    after = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    print(f"{rounds} interleaved rounds, medians; {cores} cores, load {load:.1f} before and {after:.1f} after")
    print(step_report.text(measured))
    if out is not None:
        said = {"rounds": rounds, "cores": cores, "load_before": load, "load_after": after}
        out.write_text(json.dumps({**said, **step_report.figures(measured), "run": dump(measured.run)}, indent=1))
    if plot is not None:
        plot.write_text(step_report.svg(measured))
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

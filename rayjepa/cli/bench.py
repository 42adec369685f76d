"""The verb `bench`: figures of this machine, as text and JSON."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rayjepa.config import resolve


def decode(
    overrides: Mapping[str, object],
    *,
    cells: str | None,
    peers: Sequence[str],
    rounds: int,
    clips: int,
    out: Path | None,
    plot: Path | None,
) -> int:
    """Print clips per CPU second of our decoder on each cell of the corpus, and its ratio to other libraries."""
    from rayjepa.bench import chart, corpus, report
    from rayjepa.bench.contest import contest, interpreters

    run = resolve(None, overrides)
    chosen = corpus.chosen(cells)
    pythons = interpreters(peers, sys.executable)
    if rounds < 1 or clips < 1:
        raise ValueError(f"--rounds {rounds} and --clips {clips} must be at least 1")
    if plot is not None and plot.suffix != ".svg":
        raise ValueError(f"--plot {plot}: the picture is an SVG; give a name that ends in .svg")
    load = os.getloadavg()[0]
    found = contest(run, chosen, peers=pythons, rounds=rounds, clips=clips, say=_progress)
    table = report.rows(found, frames=run.data.frames)
    data, machine = run.data, _machine(load)
    print(
        f"clips of {data.frames} frames at {data.fps:g} fps, {data.size_px} x {data.size_px}; {rounds} interleaved "
        f"rounds of {clips} clips a cell, medians\n{machine['cpu']}, {machine['cores']} cores, "
        f"load {load:.1f} before and {machine['load_after']:.1f} after\n"
    )
    print(report.text(found, table))
    if out is not None:
        settings = {"rounds": rounds, "clips": clips, "frames": data.frames, "fps": data.fps, "size_px": data.size_px}
        said = {"machine": machine, "settings": settings, **report.figures(found, table), "contest": asdict(found)}
        out.write_text(json.dumps(said, indent=1))
    if plot is not None:
        plot.write_text(chart.svg(table, found.entrants, frames=data.frames))
    return 0


def soak(overrides: Mapping[str, object], *, clips: int, out: Path | None) -> int:
    """Print memory and descriptors of a decoder over many clips; the status is 1 if they grow."""
    from rayjepa.bench import soak as soaking

    run = resolve(None, {**soaking.CHEAP, **overrides})
    soaked = soaking.soak(run.data, clips=clips, say=_progress)
    print(soaking.text(soaked))
    if out is not None:
        out.write_text(json.dumps({"leaks": soaked.leaks, **asdict(soaked)}, indent=1))
    return 1 if soaked.leaks else 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _machine(load: float) -> dict[str, object]:
    """What figures need to be compared with others."""
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
    }

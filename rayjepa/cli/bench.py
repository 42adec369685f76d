"""The verb `bench`: figures of this machine, as text and JSON."""

import json
import os
import platform
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rayjepa.cli.pretrain import videos_of
from rayjepa.config import resolve
from rayjepa.data import manifest
from rayjepa.train import folder


def feed(preset: str, overrides: Mapping[str, object], *, rounds: int, clips: int, out: Path | None) -> int:
    """Print clips/s of decode alone, of the stream into null trainers, and of the full run with its data wait."""
    run = resolve(preset, overrides)
    if run.cluster.workers == 0:
        raise ValueError("cluster.workers=0 has no stream to measure; bench feed needs at least 1")
    videos = videos_of(run)
    from rayjepa.on_ray.cluster import cluster

    with tempfile.TemporaryDirectory(prefix="rayjepa-bench-") as scratch, cluster(run):
        from rayjepa.on_ray import bench
        from rayjepa.on_ray.trainer import fit
        from rayjepa.train.history import read_history

        path = Path(scratch) / "manifest.parquet"
        manifest.write(videos, path)
        measured = bench.rounds(run, manifest_path=path, count=rounds, clips=clips)
        steps = str(max(4, -(-clips // run.train.clips)))
        ours = {"train.steps": steps, "out": scratch, "name": "run", "report.every_steps": 1, "phases": ()}
        real = resolve(preset, {**overrides, **ours})
        run_dir, real = folder.create(real, videos, preset="bench")
        fit(real, run_dir, owner=folder.claim(run_dir), watch=threading.Thread.join)
        lines = read_history(run_dir).of("step")[2:]  # the first two fill the pipeline
    figures = {
        "decode alone, clips/s": statistics.median(m.decode for m in measured),
        "stream into null trainers, clips/s": statistics.median(m.stream for m in measured),
        "stream / decode, median of paired ratios": statistics.median(m.stream / m.decode for m in measured),
        "seconds to the stream's first batch": statistics.median(m.first_batch_s for m in measured),
        "full run, clips/s": statistics.median(line["rate/clips_per_s"] for line in lines),
        "full run, data wait share of step time": sum(line["data/wait_ms"] for line in lines)
        / sum(line["time/step_ms"] for line in lines),
    }
    load = f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{rounds} interleaved rounds of {clips} clips; {load}")
    shape = f"{run.data.frames} x {run.data.size_px} x {run.data.size_px} {run.data.pixels}"
    print(f"{run.cluster.decoders} decoders, {run.cluster.workers} workers, clips of {shape}")
    for name, value in figures.items():
        print(f"{value:10.3g}  {name}")
    if out is not None:
        out.write_text(json.dumps({"figures": figures, "rounds": [asdict(m) for m in measured]}, indent=1))
    return 0


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

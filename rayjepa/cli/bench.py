"""The verb `bench`: figures of this machine, as text and JSON."""

import json
import os
import statistics
import tempfile
import threading
from collections.abc import Mapping
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
        ours = {"train.steps": steps, "out": scratch, "name": "run", "report.every_steps": 1}
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

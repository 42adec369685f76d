"""The verb `bench manifest`: a manifest of many rows and a long run over it, as text and JSON."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from rayjepa.bench import manifest_scale as scale
from rayjepa.cli.videos import indexed
from rayjepa.config import RunConfig, dump, resolve, to_yaml
from rayjepa.data import synthetic
from rayjepa.data.manifest import Manifest
from rayjepa.train.history import read_history

SMALL = 10_000
"""Rows that memory is compared with."""
STEPS = 30
"""Steps after which the processes are looked at."""
PATIENCE_S = 600.0
"""For a run to get that far."""
TARGETS = {"first batch, s": 30.0, "driver, most resident, MB": 1000.0}


def manifest(
    preset: str, overrides: Mapping[str, object], *, rows: int, samples: int, ranks: int, out: Path | None
) -> int:
    """Print what a manifest of `rows` and a run of `samples` take: the files, a tape, and real runs on Ray."""
    ours = {"cluster.workers": ranks, "cluster.decoders": 1, "phases": ()}
    run = resolve(preset, {**ours, **overrides})
    run = resolve(None, {**dump(run), "train.steps": -(-samples // run.train.clips)})
    folder = synthetic.make(Path(run.data.cache).expanduser(), run.data.synthetic_videos)
    videos = indexed(str(folder), run.data)
    load = os.getloadavg()[0]
    found: dict[str, scale.Figures] = {}
    with tempfile.TemporaryDirectory(prefix="rayjepa-bench-") as scratch:
        for count in (SMALL, rows):
            home = Path(scratch) / str(count)
            home.mkdir()
            found |= {f"{count:,} rows, {part}": figures for part, figures in _measured(run, videos, count, home)}
    about = f"{len(os.sched_getaffinity(0))} cores, load {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    print(_text(found, rows=rows, samples=run.samples, about=about))
    if out is not None:
        said = {"rows": rows, "samples": run.samples, "ranks": ranks, "machine": about, "figures": found}
        out.write_text(json.dumps(said, indent=1))
    return 0


def _measured(run: RunConfig, videos: Manifest, rows: int, home: Path) -> Iterator[tuple[str, scale.Figures]]:
    """Figures of a manifest of so many rows, part by part."""
    own = {"data.videos": str(home / "manifest.parquet"), "data.scratch": str(home / "scratch")}
    run = resolve(None, {**dump(run), **own, "report.every_steps": 1})
    _say(f"{rows:,} rows: files")
    yield "the file", scale.apart(scale.made, videos, rows, home) | scale.apart(scale.read_whole, home)
    yield "a process that makes the twin", scale.apart(scale.drawn_from, run, home)
    yield "a process that finds the twin", scale.apart(scale.drawn_from, run, home)
    shutil.rmtree(home / "scratch")
    for part in ("a run that makes the twin", "a run that finds the twin"):
        _say(f"{rows:,} rows: {part}")
        yield part, _trained(run, home / part.replace(" ", "-"))


def _trained(run: RunConfig, folder: Path) -> scale.Figures:
    """Start the run as a user does, look at its processes after some steps, and stop it.

    Raises:  RuntimeError, with what it said, if it ends or does not get that far.
    """
    folder.mkdir()
    run_dir, words = folder / "run", folder / "run.yaml"
    words.write_text(to_yaml(resolve(None, {**dump(run), "out": str(folder), "name": "run"})))
    began = time.time()
    with (folder / "said.txt").open("w") as said:
        command = [sys.executable, "-m", "rayjepa.cli", "pretrain", "--preset", str(words)]
        driver = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        first_s, peak = _until(driver, run_dir, began)
        figures = {"first batch, s": first_s, "driver, most resident, MB": peak}
        for pid, name in scale.below(driver.pid).items():
            for kind, sign in (("decode actor", "DecodeActor"), ("worker", "RayTrainWorker")):
                if sign in name:
                    found = scale.memory(pid)
                    key = f"{kind}, private, MB"
                    figures[key] = max(figures.get(key, 0.0), found["private"])
    except RuntimeError as error:
        raise RuntimeError(f"{error}; its last words: {(folder / 'said.txt').read_text()[-2000:]}") from None
    finally:
        if run_dir.is_dir():
            (run_dir / "stop").touch()
        try:
            driver.wait(120)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
    return figures


def _until(driver: "subprocess.Popen[bytes]", run_dir: Path, began: float) -> tuple[float, float]:
    """Seconds to the first step's clips, and the most that the driver held in MB until STEPS are taken."""
    peak, first_s = 0.0, 0.0
    while time.time() - began < PATIENCE_S:
        time.sleep(0.2)
        if driver.poll() is not None:
            raise RuntimeError(f"the run ended with status {driver.returncode}")
        peak = max(peak, scale.memory(driver.pid).get("peak", 0.0))
        lines = read_history(run_dir).of("step") if (run_dir / "metrics").is_dir() else []
        if lines and not first_s:
            computed_ms = lines[0]["time/step_ms"] - lines[0]["data/wait_ms"]
            first_s = lines[0]["unix_s"] - began - computed_ms / 1e3
        if len(lines) >= STEPS:
            return first_s, peak
    raise RuntimeError(f"the run did not take {STEPS} steps in {PATIENCE_S:.0f} s")


def _text(found: Mapping[str, scale.Figures], *, rows: int, samples: int, about: str) -> str:
    lines = [f"{rows:,} rows, a run of {samples:,} samples; {about}"]
    for part, figures in found.items():
        lines += ["", part, *(f"{value:12,.1f}  {name}{_target(name, value)}" for name, value in figures.items())]
    return "\n".join(lines)


def _target(name: str, value: float) -> str:
    limit = TARGETS.get(name)
    return "" if limit is None else f" (target below {limit:g}: {'met' if value < limit else 'missed'})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

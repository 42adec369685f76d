"""Phases on Ray: a worker group and a dataset for each, one command for all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayjepa.config import phases_of, resolve
from rayjepa.data import synthetic
from rayjepa.train.history import coverage, read_history
from rayjepa.train.schedules import learning_rate

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 400  # both commands together take 45 s on a quiet machine with two cores
MAIN_STEPS, COOL_STEPS, CLIPS = 90, 8, 8
COOL = "data.frames: 8, data.size_px: 48, train.accumulation: 2, optim.warmup_steps: 0, optim.lr: 5.0e-4"


def start(*words: str, log: Path) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY")}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "rayjepa.cli", "pretrain", *words], stdout=file, stderr=file, env=env
        )


def step_of(run_dir: Path) -> int:
    try:
        return json.loads((run_dir / "progress.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def test_two_workers_stopped_in_the_first_phase_go_on_into_the_second(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log.txt"
    videos = synthetic.make(tmp_path / "videos", 24)
    words = ["--preset", "tiny", f"data.videos={videos}", f"out={tmp_path}", "name=run", "checkpoint.every_steps=50"]
    sizes = [f"train.steps={MAIN_STEPS}", f"train.clips={CLIPS}", "zero.stage=1", "cluster.workers=2"]
    driver = start(*words, *sizes, f"phases=[{{name: cool, steps: {COOL_STEPS}, set: {{{COOL}}}}}]", log=log)
    until = time.monotonic() + PATIENCE_S
    while step_of(run_dir) < 2:
        assert driver.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE_S) == 130, log.read_text()[-3000:]
    stopped = step_of(run_dir)
    assert 2 <= stopped < MAIN_STEPS, "the signal came after the first phase, so this test shows nothing"
    assert start("--resume", str(run_dir), log=log).wait(PATIENCE_S) == 0, log.read_text()[-3000:]

    table, steps = read_history(run_dir), MAIN_STEPS + COOL_STEPS
    assert coverage(run_dir, steps * CLIPS) == ([], [])
    assert [(a.start, a.world) for a in table.attempts.values()] == [(0, 2), (stopped, 2), (MAIN_STEPS, 2)]
    assert [line["step"] for line in table.of("step", undone=None)] == list(range(steps))
    main, cool = phases_of(resolve(str(run_dir / "run.yaml"), {}))
    rates = [learning_rate(main.run, step) for step in range(MAIN_STEPS)]
    rates += [learning_rate(cool.run, step) for step in range(COOL_STEPS)]
    assert [line["optim/lr"] for line in table.of("step")] == rates
    examined = {(line["step"], line["phase"]) for line in table.of("health")}
    assert examined >= {(0, "main"), (MAIN_STEPS, "main"), (MAIN_STEPS, "cool"), (steps, "cool")}
    assert json.loads((run_dir / "outcome.json").read_text())["state"] == "finished"

"""Videos and images in one run on two workers: every sample once, also over a stop in the middle."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, png

from rayjepa.config import resolve
from rayjepa.data import synthetic
from rayjepa.train.history import coverage, read_history

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 400
CLIPS = 16


def command(*words: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY")}
    done = subprocess.run(
        [sys.executable, "-m", "rayjepa.cli", "pretrain", *words],
        env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_of_videos_and_images_under_zero_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stills = tmp_path / "stills"
    stills.mkdir()
    for number in range(6):
        (stills / f"{number}.png").write_bytes(png(np.roll(picture(), number, axis=1)))
    streams = [
        {"name": "video", "weight": 3, "set": {}},
        {"name": "images", "weight": 1, "set": {"data.frames": 1, "data.videos": str(stills), "masks.kind": "ijepa"}},
    ]
    preset = tmp_path / "mixed.yaml"
    base = {"data.videos": str(synthetic.make(tmp_path / "cache", 6)), "train.clips": CLIPS, "train.accumulation": 2}
    knobs = {"masks.ijepa.min_context": 2, "health.clips": 4, "checkpoint.every_steps": 2, "cluster.decoders": 2}
    preset.write_text(resolved_text(base | knobs | {"streams": streams}))
    command("--preset", str(preset), f"out={tmp_path}", "name=mixed", "train.steps=3")
    command("--resume", str(tmp_path / "mixed"), "train.steps=6", "train.accumulation=4")

    run_dir = tmp_path / "mixed"
    assert coverage(run_dir, 6 * CLIPS) == ([], [])
    run = resolve(str(run_dir / "run.yaml"), {})
    assert (run.zero.stage, run.train.engine, run.ranks, run.data.quantum) == (1, "zero", 2, 8)
    lines = read_history(run_dir).of("step")
    assert [line["step"] for line in lines] == list(range(6))
    # Weights 3 and 1 over two quanta a step: the images come in every other step.
    assert ["loss/images_latent" in line for line in lines] == ["loss/images_latent" in line for line in lines[:2]] * 3
    assert sum("loss/images_latent" in line for line in lines) == 3
    assert all(np.isfinite(line["loss/video_latent"]) for line in lines)


def resolved_text(overrides: dict[str, object]) -> str:
    from rayjepa.config import to_yaml

    return to_yaml(resolve("tiny", overrides))

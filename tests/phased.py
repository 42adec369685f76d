"""Small runs of two phases for the tests of phases."""

import json
from pathlib import Path
from typing import Any

from rayjepa.config import RunConfig, resolve
from rayjepa.train.history import begin_attempt
from rayjepa.train.restart import folder_name

COOL = {"data.frames": 8, "data.size_px": 48, "train.accumulation": 2, "optim.warmup_steps": 0, "optim.lr": 5e-4}
MAIN_STEPS, COOL_STEPS, CLIPS = 2, 2, 4
STEPS = MAIN_STEPS + COOL_STEPS


def run_of(**overrides: Any) -> RunConfig:
    base = {
        "cluster.workers": 0,
        "train.engine": "plain",
        "train.steps": MAIN_STEPS,
        "model.width": 12,
        "health.clips": 4,
        "health.every_steps": 100,
        "checkpoint.every_steps": 100,
        "phases": [{"name": "cool", "steps": COOL_STEPS, "set": COOL}],
    }
    return resolve("tiny", base | {key.replace("__", "."): value for key, value in overrides.items()})


def saved(run_dir: Path, finished: int) -> None:
    """A run folder with a checkpoint after so many steps."""
    begin_attempt(run_dir, owner="me", world=1)
    checkpoint = run_dir / "checkpoints" / folder_name(finished=finished, attempt=1)
    checkpoint.mkdir(parents=True)
    state = {"finished": finished, "attempt": 1, "world": 1, "fingerprint": ""}
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "complete").write_text("{}")

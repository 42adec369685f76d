"""What a run folder says of itself beside its metrics: state, settings, and who drives it."""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rayjepa.config import ConfigError, RunConfig, resolve

State = Literal["running", "finished", "failed", "stopped", "interrupted"]
Facts = Mapping[str, Any]

SILENCE_S = 60.0
"""Age of the last sign of life at which a run driven from another host counts as interrupted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a run stands, and in words why."""

    state: State
    reason: str
    step: int
    """Steps finished, as the progress file says."""
    step_unix_s: float
    """When it said so."""
    steps: int | None
    seen_unix_s: float
    """Last sign of life."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The run's configuration as far as it can be read."""

    run: RunConfig | None
    raw: str
    """Text of run.yaml, empty if there is none."""
    problem: str
    """Why `run` is none; empty if it is there."""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its configuration, its progress, or at least one attempt."""
    return any((folder / part).exists() for part in ("run.yaml", "progress.json", "attempts"))


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty if the file is not there, is torn, or holds something else."""
    try:
        loaded = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def read_settings(folder: Path) -> Settings:
    """The configuration in run.yaml, or the reason why this version cannot resolve it."""
    path = folder / "run.yaml"
    try:
        raw = path.read_text()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        missing = isinstance(error, FileNotFoundError)
        return Settings(run=None, raw="", problem="run.yaml is not there yet" if missing else f"run.yaml: {error}")
    try:
        loaded = yaml.safe_load(raw)
        if not isinstance(loaded, dict):
            return Settings(run=None, raw=raw, problem="run.yaml holds no mapping of sections")
        return Settings(run=resolve(None, loaded), raw=raw, problem="")
    except (ConfigError, yaml.YAMLError) as error:
        return Settings(run=None, raw=raw, problem=f"run.yaml does not fit this version of rayjepa: {error}")


def read_standing(folder: Path, *, settings: Settings, now: float | None = None) -> Standing:
    """Where the run in `folder` stands at unix time `now`.

    An outcome counts unless a driver came after it (a resumed run keeps the old outcome until its own end).
    """
    now = time.time() if now is None else now
    progress, driver, outcome = (read_json(folder / f"{n}.json") for n in ("progress", "driver", "outcome"))
    seen = max(_time(progress), _time(driver), _time(outcome)) or folder.stat().st_mtime
    state, reason = _state(progress, driver, outcome, silent_s=max(now - seen, 0.0))
    if state == "interrupted":
        reason += f"; continue with `rayjepa pretrain --resume {folder}`"
    steps = progress.get("steps")
    if not isinstance(steps, int):
        steps = settings.run.steps if settings.run else None
    step, step_unix_s = progress.get("step"), _time(progress)
    if not isinstance(step, int):
        step, step_unix_s = outcome.get("finished"), _time(outcome)
    return Standing(
        state=state,
        reason=reason,
        step=step if isinstance(step, int) else 0,
        step_unix_s=step_unix_s,
        steps=steps,
        seen_unix_s=seen,
    )


def _state(progress: Facts, driver: Facts, outcome: Facts, *, silent_s: float) -> tuple[State, str]:
    if outcome.get("state") in ("finished", "failed", "stopped") and _time(outcome) >= _time(driver):
        return outcome["state"], str(outcome.get("reason") or "")
    doing = str(progress.get("message") or progress.get("state") or "")
    message = "" if doing in ("training", "finished", "failed", "stopped") else doing
    here = bool(driver) and driver.get("host") == socket.gethostname()
    if here and _is_alive(driver):
        return "running", message
    if not here and silent_s <= SILENCE_S:
        return "running", message
    if progress.get("state") in ("finished", "failed", "stopped") and _time(progress) >= _time(driver):
        return progress["state"], message
    who = f"process {driver.get('pid')} on {driver.get('host')}" if driver else "not recorded"
    why = "is gone" if here else f"gave no sign of life for {silent_s:,.0f} s"
    return "interrupted", f"its driver ({who}) {why}, and left no outcome"


def _time(facts: Facts) -> float:
    value = facts.get("unix_s")
    return float(value) if isinstance(value, int | float) else 0.0


def _is_alive(driver: Facts) -> bool:
    """Whether the driver's process lives on this host, and is not a later one that was given its number."""
    pid = driver.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, under another user
        pass
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # a system without /proc: the number alone must do
        return True
    return status[0] not in "ZX" and driver.get("born") in (None, status[19])

"""The run folder: made once, claimed by one driver at a time, never silently resumed."""

import dataclasses
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rayjepa.config import ConfigError, Phase, RunConfig, dump, phases_of, resolve, settled, to_yaml
from rayjepa.data.manifest import Manifest
from rayjepa.data.twin import Twin
from rayjepa.train.accepting import keep_first
from rayjepa.train.restart import finished_steps, restart_point

# What a resume may not change: it would train other samples, or not fit the weights.
FIXED = ("name", "out", "seed", "model.", "predictor.", "train.clips", "data.", "views.", "streams")
FREE_DATA = tuple(
    f"data.{key}"
    for key in (
        "retries",
        "decode_cpu_s",
        "decode_wall_s",
        "decode_memory_gib",
        "max_bad_share",
        "substitutes",
        "whole_mib",
        "read_tries",
        "read_timeout_s",
        "node_cache_gib",
        "scratch",
    )
)
# A driver on another machine counts as alive if it touched its record this recently; it does so with every beat.
SILENCE_S = 60.0


def create(run: RunConfig, videos: Manifest | Twin, *, preset: str) -> tuple[Path, RunConfig]:
    """Make the folder of a new run and write its configuration and manifest; return both with the name filled in.

    Raises:  ValueError if the folder exists or cannot be written.
    """
    name = run.name or f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"
    named = dataclasses.replace(settled(run), name=name)
    folder = (Path(run.out).expanduser() / name).resolve()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if run.name is None:  # two runs in one second
            return create(dataclasses.replace(run, name=f"{name}-{uuid.uuid4().hex[:4]}"), videos, preset=preset)
        raise ValueError(
            f"{folder} exists: a run is never overwritten. Continue it with `rayjepa pretrain --resume {folder}`, "
            "or choose another name=…"
        ) from None
    except OSError as error:
        raise ValueError(f"out={run.out}: cannot make {folder} ({error.strerror}); choose a writable folder") from None
    (folder / "run.yaml").write_text(to_yaml(named))
    keep_first(named, folder / "manifest.parquet", videos)
    return folder, named


def reopen(folder: Path, overrides: Mapping[str, object]) -> tuple[RunConfig, list[str]]:
    """The configuration of an existing run with `overrides` applied, and what they changed, as `key: old -> new`.

    Raises:  ValueError if `folder` is no run, or an override would change what was trained.
    """
    if not (folder / "run.yaml").is_file():
        known = sorted(p.parent.name for p in folder.glob("*/run.yaml"))
        hint = f"; it holds the runs {', '.join(known[:5])}" if known else ""
        raise ValueError(f"{folder} is not a run folder: it has no run.yaml{hint}")
    for key in overrides:
        if key.startswith(FIXED) and key not in FREE_DATA:
            raise ConfigError(
                f"{key} cannot change on resume: it decides the samples or the weights; start a new run for it"
            )
    before = resolve(str(folder / "run.yaml"), {})
    after = resolve(str(folder / "run.yaml"), overrides)
    changed = _differences(before, after)
    if changed:
        saved = restart_point(folder)
        _require_same_past(before, after, finished=finished_steps(saved) if saved else 0)
        replace_text(folder / "run.yaml", to_yaml(after))
    return after, changed


def _require_same_past(before: RunConfig, after: RunConfig, *, finished: int) -> None:
    """Raises:  ConfigError if a step that is finished would be of another phase, or a phase change what it trains."""
    old, new = ([phase for phase in phases_of(run) if phase.first < finished] for run in (before, after))
    if [(phase.name, phase.first) for phase in old] != [(phase.name, phase.first) for phase in new]:
        raise ConfigError(
            f"after {finished} steps the phases are {_places(old)}; with these changes they would be {_places(new)}: "
            "phases that are over cannot change their names and steps, and no other can come before them"
        )
    for place, (one, other) in enumerate(zip(old, new, strict=True)):
        if place and one.stop <= finished and before.phases[place - 1].set != after.phases[place - 1].set:
            raise ConfigError(f"phases[{one.name}].set cannot change: all of the phase's steps are finished")
        for key, value in _fixed(one.run).items():
            if _fixed(other.run)[key] != value:
                raise ConfigError(
                    f"phases[{one.name}].set: {key} cannot change on resume once the phase has begun: it decides the "
                    "samples or the weights; leave it, or give it to a phase that has not begun"
                )


def _fixed(run: RunConfig) -> dict[str, Any]:
    """What may not change within a phase."""
    return {k: v for k, v in _flat(dump(run)).items() if k.startswith(FIXED) and k not in FREE_DATA}


def _places(phases: Sequence[Phase]) -> str:
    return ", ".join(f"{phase.name} from step {phase.first}" for phase in phases) or "none"


def _differences(before: RunConfig, after: RunConfig) -> list[str]:
    old, new = _flat(dump(before)), _flat(dump(after))
    return [f"{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]


def claim(folder: Path) -> str:
    """Become the run's driver; return the identity that its attempts carry.

    Raises:  RuntimeError if another driver is alive.
    """
    alive = driver_alive(folder)
    if alive:
        raise RuntimeError(f"{folder.name} is being trained by {alive}; stop that first, or wait for it to end")
    owner = uuid.uuid4().hex[:12]
    record = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "owner": owner,
        "unix_s": time.time(),
        "born": _born(os.getpid()),
    }
    replace_text(folder / "driver.json", json.dumps(record))
    for stale in ("outcome.json", "progress.json", "stop"):
        (folder / stale).unlink(missing_ok=True)
    return owner


def driver_alive(folder: Path) -> str | None:
    """`process N on this machine` (or its host) if the run's driver lives, else None."""
    try:
        record = json.loads((folder / "driver.json").read_text())
    except (OSError, ValueError):
        return None
    if (folder / "outcome.json").exists():
        return None
    if record["host"] == socket.gethostname():
        # The start time tells the driver from a later process that got its number.
        same = record["pid"] != os.getpid() and _born(record["pid"]) == record["born"] is not None
        return f"process {record['pid']} on this machine" if same else None
    fresh = time.time() - (folder / "driver.json").stat().st_mtime < SILENCE_S
    return f"process {record['pid']} on {record['host']}" if fresh else None


def beat(folder: Path) -> None:
    """Show machines that cannot see this process that it lives."""
    os.utime(folder / "driver.json")


def conclude(folder: Path, state: str, *, finished: int, reason: str = "") -> None:
    """Write how the run ended: state is finished, failed or stopped."""
    outcome = {"state": state, "reason": reason, "finished": finished, "unix_s": time.time()}
    replace_text(folder / "outcome.json", json.dumps(outcome))


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(text)
    half.replace(path)


def _born(pid: int) -> str | None:
    """Start time of a process, in clock ticks since boot; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

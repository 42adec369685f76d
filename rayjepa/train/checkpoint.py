"""Save and restore a run: a folder in our own format, which knows names and not ranks."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from rayjepa.config import RunConfig, phase_at, to_yaml
from rayjepa.train.attempts import read_attempts
from rayjepa.train.engine import Engine, gather_objects
from rayjepa.train.ledger import Ledger
from rayjepa.train.pieces import read_index
from rayjepa.train.restart import (
    MARKER,
    State,
    finished_steps,
    folder_name,
    prune,
    read_state,
    remove,
    restart_point,
)

__all__ = ["State", "finished_steps", "prune", "read_state", "restart_point", "restore", "save"]


def save(
    engine: Engine, run_dir: Path, run: RunConfig, *, attempt: int, finished: int, ledger: Ledger, fingerprint: str
) -> Path:
    """Write the state after `finished` steps, and delete what checkpoint.keep makes superfluous; all ranks call it.

    Every rank writes its shard, and once all have, rank 0 checks that each tensor is there exactly once and writes the
    marker. The folder is complete when this returns, on every rank.
    Raises:  RuntimeError if a later attempt has begun (this one was given up, and may not write), or if what was
             written has a hole; OSError if it could not be written. One rank's error is raised on all.
    """
    folder = run_dir / "checkpoints" / folder_name(finished=finished, attempt=attempt)

    def prepare() -> None:
        _require_newest(run_dir, attempt)
        remove(folder)
        folder.mkdir(parents=True)

    def commit() -> None:
        read_index(folder, shards=engine.world)
        state = State(
            finished=finished,
            attempt=attempt,
            world=engine.world,
            fingerprint=fingerprint,
            refused=ledger.refused,
            ledger=ledger.failures,
            versions=_versions(),
        )
        _write(folder / "state.json", json.dumps(asdict(state)))
        _write(folder / "run.yaml", to_yaml(run))
        _mark(folder, shards=engine.world)
        prune(run_dir, keep=phase_at(run, finished - 1).run.checkpoint.keep)

    _all_or_none(prepare if engine.rank == 0 else _nothing)
    _all_or_none(lambda: engine.save(folder))
    _all_or_none(commit if engine.rank == 0 else _nothing)
    return folder


def restore(engine: Engine, folder: Path, *, fingerprint: str | None = None) -> State:
    """Load a checkpoint into `engine`, whatever engine and world size wrote it; all ranks call it.

    Raises:  RuntimeError if it is torn, does not fit the model, or was trained on a manifest with another fingerprint.
    """
    state = read_state(folder)
    if fingerprint is not None and state.fingerprint != fingerprint:
        raise RuntimeError(
            f"{folder} was trained on a manifest with fingerprint {state.fingerprint}, this one has {fingerprint}: "
            "step and sample would no longer belong together. `rayjepa pretrain --resume RUN` says what differs, and "
            "how to accept it; or put the run's own manifest.parquet back"
        )
    engine.load(folder)
    return state


def _all_or_none(part: Callable[[], None]) -> None:
    """Do this rank's part, then wait for the others; if one failed all raise, so that none waits for it for ever."""
    error: OSError | RuntimeError | None = None
    try:
        part()
    except (OSError, RuntimeError) as caught:
        error = caught
    problems = [problem for problem in gather_objects(None if error is None else str(error)) if problem is not None]
    if error is not None:
        raise error
    if problems:
        raise RuntimeError(f"another rank could not write its part of the checkpoint: {problems[0]}")


def _nothing() -> None:
    """The part of a rank that only waits."""


def _require_newest(run_dir: Path, attempt: int) -> None:
    newest = max(read_attempts(run_dir), default=attempt)
    if newest > attempt:
        raise RuntimeError(
            f"{run_dir}: attempt {newest} has begun, so attempt {attempt} was given up and may not write a checkpoint"
        )


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _mark(folder: Path, *, shards: int) -> None:
    """Make the marker appear last, also after a loss of power: names are synced before it, and after."""
    _sync(folder)
    _sync(folder.parent)
    half = folder / f".{MARKER}"
    _write(half, json.dumps({"shards": shards}))
    half.replace(folder / MARKER)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Write a folder's names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _versions() -> dict[str, str]:
    """Versions that took part, as far as they are installed."""
    found: dict[str, str] = {}
    for package in ("rayjepa", "torch", "deepspeed"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

"""Which checkpoint a run continues from, and which may be deleted. Free of torch: the command line asks too."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayjepa.train.attempts import read_attempts

MARKER = "complete"
"""Written last: a folder without it is torn, and is never read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a checkpoint says beside its tensors: state.json."""

    finished: int
    """Steps finished; a resume starts with the step of this number."""
    attempt: int
    world: int
    """Ranks that wrote it, which is the number of its shards."""
    fingerprint: str
    """Of the manifest, which decides the tape."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Steps passed over: step and reason."""
    ledger: list[dict[str, Any]] = field(default_factory=list)
    """Samples that another clip stood in for: the failure, the step and the substitute."""
    versions: dict[str, str] = field(default_factory=dict)


def folder_name(*, finished: int, attempt: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{finished:08d}-attempt-{attempt:04d}"


def parse_name(name: str) -> tuple[int, int] | None:
    """(attempt, finished) of a checkpoint folder's name, which sorts as checkpoints of a run do; None for another."""
    found = re.fullmatch(r"step-(\d+)-attempt-(\d+)", name)
    return (int(found[2]), int(found[1])) if found else None


def is_complete(folder: Path) -> bool:
    """Whether the folder's writer got to the end."""
    return (folder / MARKER).is_file()


def require_complete(folder: Path) -> None:
    """Raises:  RuntimeError if the checkpoint is torn or absent."""
    if not is_complete(folder):
        what = f"is torn: it has no {MARKER} marker" if folder.is_dir() else "does not exist"
        raise RuntimeError(f"checkpoint {folder} {what}; use one that restart_point or `rayjepa runs` names")


def read_state(folder: Path) -> State:
    """The state of a complete checkpoint.

    Raises:  RuntimeError if it is torn.
    """
    require_complete(folder)
    return State(**json.loads((folder / "state.json").read_text()))


def finished_steps(folder: Path) -> int:
    """Steps finished in a complete checkpoint."""
    return read_state(folder).finished


def surviving(run_dir: Path) -> Iterator[Path]:
    """Complete checkpoints of the run's history, newest first.

    They are the newest attempt's own, then those of the attempt that it began from up to the checkpoint that it began
    with, and so on. What an abandoned attempt wrote after it was left (a worker group that lives on after its driver
    gave it up) is never among them.
    """
    attempts, folders = read_attempts(run_dir), _folders(run_dir)
    number, limit = max(attempts, default=0), float("inf")
    while number in attempts:
        own = [finished for attempt, finished in folders if attempt == number and finished <= limit]
        for finished in sorted(own, reverse=True):
            if is_complete(folders[number, finished]):
                yield folders[number, finished]
        origin = attempts[number].checkpoint
        place = parse_name(Path(origin).name) if origin else None
        if place is None or place[0] >= number:
            return
        number, limit = place


def restart_point(run_dir: Path) -> Path | None:
    """The checkpoint that the next attempt begins from; none: it begins with untrained weights."""
    return next(surviving(run_dir), None)


def prune(run_dir: Path, *, keep: int) -> list[Path]:
    """Delete all checkpoints but the newest `keep` of the run's history; return what was deleted.

    The one that the newest attempt began from is the newest until the attempt has one of its own. A torn folder goes
    once a later checkpoint is complete; before that, it may be one that is being written.
    """
    folders = _folders(run_dir)
    kept = list(surviving(run_dir))[:keep]
    if not kept:
        return []
    newest = parse_name(kept[0].name)
    assert newest is not None
    doomed = [
        folder
        for place, folder in sorted(folders.items())
        if folder not in kept and (is_complete(folder) or place < newest) and place[0] <= newest[0]
    ]
    for folder in doomed:
        remove(folder)
    return doomed


def remove(folder: Path) -> None:
    """Delete a checkpoint so that a kill half-way leaves a torn folder, not a complete one with holes."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # a zombie may be writing into it; the next prune tries again


def _folders(run_dir: Path) -> dict[tuple[int, int], Path]:
    """Checkpoint folders by (attempt, finished), torn ones too."""
    found: dict[tuple[int, int], Path] = {}
    for folder in (run_dir / "checkpoints").glob("step-*-attempt-*"):
        place = parse_name(folder.name)
        if place is not None:
            found[place] = folder
    return found

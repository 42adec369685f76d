"""The lives of a run's worker group, one record each: attempts/0001.json, 0002.json, …"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One life of the worker group, and where it began."""

    attempt: int
    """1, 2, 3 … in the order of their beginnings."""
    start: int
    """Its first step: the steps finished in the checkpoint it began from."""
    checkpoint: str | None
    """That checkpoint, relative to the run's folder; none: it began with untrained weights."""
    world: int
    owner: str
    """Identity of the driver that began it."""
    unix_s: float
    host: str


def read_attempts(run_dir: Path) -> dict[int, Attempt]:
    """All attempts by number, in order. A record that was never completed is an attempt that never began."""
    found: dict[int, Attempt] = {}
    for path in sorted((run_dir / "attempts").glob("[0-9][0-9][0-9][0-9].json")):
        try:
            record = Attempt(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            continue
        found[record.attempt] = record
    return found


def record_attempt(run_dir: Path, *, owner: str, checkpoint: Path | None, start: int, world: int) -> Attempt:
    """Take the next number, which nobody else can then take, and write the record to disk."""
    folder = run_dir / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(path.stem) for path in folder.glob("[0-9][0-9][0-9][0-9].json")), default=0)
    while True:
        number += 1
        try:
            file = os.open(folder / f"{number:04d}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:  # another driver was faster
            continue
    record = Attempt(
        attempt=number,
        start=start,
        checkpoint=None if checkpoint is None else checkpoint.relative_to(run_dir).as_posix(),
        world=world,
        owner=owner,
        unix_s=time.time(),
        host=socket.gethostname(),
    )
    with os.fdopen(file, "w") as text:
        text.write(json.dumps(asdict(record)))
        text.flush()
        os.fsync(text.fileno())
    return record


def newest_attempt(run_dir: Path, *, owner: str) -> Attempt:
    """The attempt that this driver's ranks belong to.

    Raises:  RuntimeError if there is none, or if another driver has begun a later one.
    """
    attempts = read_attempts(run_dir)
    if not attempts:
        raise RuntimeError(f"{run_dir} has no attempt; begin_attempt makes one before ranks start")
    newest = attempts[max(attempts)]
    if newest.owner != owner:
        raise RuntimeError(
            f"{run_dir}: attempt {newest.attempt} belongs to driver {newest.owner} on {newest.host}, "
            f"this one is {owner}; only the newest driver may train a run"
        )
    return newest


def record_end(run_dir: Path, attempt: int, reasons: dict[int, str]) -> None:
    """Write why the ranks of an attempt ended, by rank: 0001.end.json beside its record."""
    (run_dir / "attempts" / f"{attempt:04d}.end.json").write_text(json.dumps(reasons))


def read_ends(run_dir: Path) -> dict[int, dict[int, str]]:
    """Why attempts ended, by attempt and rank; an attempt that finished, or whose driver was killed, has none."""
    found: dict[int, dict[int, str]] = {}
    for path in sorted((run_dir / "attempts").glob("*.end.json")):
        reasons = json.loads(path.read_text())
        found[int(path.name.split(".")[0])] = {int(rank): reason for rank, reason in reasons.items()}
    return found

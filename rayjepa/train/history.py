"""What a run did, line by line: the writer of metrics/, its reader, and the proof that every sample was trained once.

Free of torch: the report reads it too.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rayjepa.train.attempts import Attempt, newest_attempt, read_attempts, record_attempt
from rayjepa.train.board import Board
from rayjepa.train.restart import finished_steps, is_complete, restart_point

__all__ = ["Attempt", "History", "Table", "begin_attempt", "coverage", "merge", "newest_attempt", "read_history"]

Line = dict[str, Any]
Range = list[int]
"""[first, past the last]"""


def begin_attempt(run_dir: Path, *, owner: str, world: int) -> Attempt:
    """Begin the next life of the worker group, from the restart point as it is now.

    Called once per worker-group start; the dataset and all ranks go by the record that it returns.
    Raises:  RuntimeError if checkpoints keep being deleted meanwhile (another driver trains this run).
    """
    for _ in range(3):
        checkpoint = restart_point(run_dir)
        start = 0 if checkpoint is None else finished_steps(checkpoint)
        record = record_attempt(run_dir, owner=owner, checkpoint=checkpoint, start=start, world=world)
        # From here on nobody prunes it; but a group that was given up may have done so just before.
        if checkpoint is None or is_complete(checkpoint):
            return record
        (run_dir / "attempts" / f"{record.attempt:04d}.json").unlink()
    raise RuntimeError(f"{run_dir}: the newest checkpoint was deleted three times in a row; is another driver running?")


class History:
    """Rank 0's writer of lines; on other ranks it does nothing.

    A line goes to the operating system as it comes, so that a killed run shows what it had done and what of it was
    undone; `flush` syncs it to disk, and the loop does so before a checkpoint counts. Every `lines` lines a new file
    begins: a store without appends takes the full ones as they are.
    """

    def __init__(
        self, run_dir: Path, *, attempt: int, rank: int = 0, lines: int = 10000, board: Board | None = None
    ) -> None:
        self.folder, self.attempt, self.rank = run_dir / "metrics", attempt, rank
        self.lines, self.board = lines, board
        self._written, self._file = 0, None
        if rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)

    def append(self, kind: str, /, *, step: int, **values: Any) -> None:
        """Add a line of this attempt, with the time of now."""
        if self.rank != 0:
            return
        ours = "attempt"
        if kind in ("failure", "held_out"):  # a failure has an attempt and a kind of its own
            ours, values["failure_kind"] = "attempt_of_run", values.pop("kind", "")
        line = {"kind": kind, ours: self.attempt, "step": step, "unix_s": time.time(), **values}
        file = self._chunk()
        file.write(json.dumps(line) + "\n")
        file.flush()
        self._written += 1
        if self.board is not None:
            self.board.write(line)

    def flush(self) -> None:
        """Sync what was written to disk."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        """Sync and close; a later line begins where this one ended."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _chunk(self) -> TextIO:
        """The file of the next line."""
        number, into = divmod(self._written, self.lines)
        if into == 0 or self._file is None:
            if self._file is not None:
                self.flush()
                self._file.close()
            self._file = (self.folder / f"attempt-{self.attempt:04d}-{number:06d}.jsonl").open("a")
        return self._file


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A run's lines in the order they were written, each with `undone`: whether a later attempt took it back."""

    lines: list[Line]
    attempts: dict[int, Attempt]

    def of(self, kind: str, *, undone: bool | None = False) -> list[Line]:
        """Lines of one kind: of the surviving history, or what was undone, or (None) both."""
        return [x for x in self.lines if x["kind"] == kind and (undone is None or x["undone"] is undone)]


def read_history(run_dir: Path) -> Table:
    """All lines of all attempts.

    Raises:  RuntimeError naming file and line if one is not readable.
    """
    attempts = read_attempts(run_dir)
    lines: list[Line] = []
    for path in sorted((run_dir / "metrics").glob("attempt-*.jsonl")):
        for number, text in enumerate(path.read_text().splitlines(keepends=True), start=1):
            if not text.endswith("\n"):  # being written, or cut off by the end of its writer or machine
                break
            try:
                line = json.loads(text)
                line["undone"] = is_undone(line, attempts.values())
            except (ValueError, KeyError, TypeError) as error:
                raise RuntimeError(f"{path}, line {number} is not a line of a history: {error}") from error
            lines.append(line)
    return Table(lines=lines, attempts=attempts)


def is_undone(line: Mapping[str, Any], attempts: Iterable[Attempt]) -> bool:
    """Whether a later attempt began at or before the line's step.

    A health line tells of a state, after `step` steps: it stands if an attempt begins right there, unless its own did,
    since the later one then examined that state anew.
    """
    records = {record.attempt: record.start for record in attempts}
    own, step = line.get("attempt_of_run", line.get("attempt")), line["step"]
    last = step - 1 if line["kind"] == "health" and records.get(own) != step else step
    return any(number > own and start <= last for number, start in records.items())


def coverage(run_dir: Path, samples: int) -> tuple[list[Range], list[Range]]:
    """Ranges of [0, `samples`) that the surviving history lacks, and those that it has more than once.

    Samples of a step that was passed over count: they were drawn, and are not drawn again. Both lists are empty for a
    finished run, whatever happened to it on the way.
    """
    table = read_history(run_dir)
    taken = [r for line in table.of("step") for r in line["trained"]]
    taken += [r for line in table.of("refused") for r in line["samples"]]
    missing: list[Range] = []
    repeated: list[Range] = []
    at = 0
    for low, high in sorted(taken):
        if low > at:
            missing.append([at, low])
        if low < at:
            repeated.append([low, min(at, high)])
        at = max(at, high)
    if at < samples:
        missing.append([at, samples])
    return merge(missing), merge(repeated)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, joined where one begins as another ends; what overlaps stays apart, so that it is seen."""
    joined: list[Range] = []
    for low, high in sorted(ranges):
        if joined and joined[-1][1] == low:
            joined[-1][1] = high
        else:
            joined.append([low, high])
    return joined

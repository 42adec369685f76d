"""A run's history boiled down to what the page and the table of runs say of it."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rayjepa.config.parts import MAIN
from rayjepa.report.reading import Standing
from rayjepa.train.attempts import Attempt, read_attempts
from rayjepa.train.history import Table, is_undone, read_history

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """One attempt and what became of its steps."""

    record: Attempt
    wall_s: float
    """From its beginning to its last line."""
    kept: int
    """Steps that survive."""
    undone: int
    """Steps that a later attempt took back, as far as they were written down."""
    lost_s: float
    """Wall-clock seconds of the undone steps."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """The lines of a run by kind: what survives, and apart from it what was undone."""

    table: Table
    damage: str
    """Why some lines could not be read; empty if all could."""

    @cached_property
    def steps(self) -> list[Line]:
        """Surviving step lines, in order of steps."""
        return sorted(self.table.of("step"), key=lambda line: line["step"])

    @cached_property
    def health(self) -> list[Line]:
        """Surviving examinations, in order of steps."""
        return sorted(self.table.of("health"), key=lambda line: line["step"])

    @cached_property
    def examined(self) -> list[Line]:
        """The examinations of the newest one's phase, which alone were of the same clips."""
        names = [line.get("phase", MAIN) for line in self.health]
        return [line for line, name in zip(self.health, names, strict=True) if name == names[-1]]

    @cached_property
    def failures(self) -> list[Line]:
        """Clips that were given up in surviving steps, in order of samples."""
        return sorted(self.table.of("failure"), key=lambda line: (line.get("index", 0), line.get("attempt", 0)))

    @cached_property
    def held_out(self) -> list[Line]:
        """Held-out clips that were given up; each failure once, though every attempt decodes them anew."""
        lines = self.table.of("held_out")
        once = {(line.get("index", 0), line.get("attempt", 0)): line for line in lines}
        return [once[place] for place in sorted(once)]

    @cached_property
    def refused(self) -> list[Line]:
        """Steps passed over in the surviving history."""
        return sorted(self.table.of("refused"), key=lambda line: line["step"])

    @cached_property
    def lives(self) -> list[Life]:
        """Every attempt in order."""
        records = self.table.attempts
        lines: dict[object, list[Line]] = {number: [] for number in records}
        for line in self.table.lines:
            lines.setdefault(line.get("attempt_of_run", line.get("attempt")), []).append(line)
        return [
            _life(record, lines[number], later=[r.start for r in records.values() if r.attempt > number])
            for number, record in records.items()
        ]

    @property
    def finished(self) -> int:
        """Steps finished in the surviving history."""
        return max((line["step"] + 1 for line in (*self.steps[-1:], *self.refused[-1:])), default=0)

    @cached_property
    def samples(self) -> int:
        """Samples trained in the surviving history."""
        return sum(high - low for line in self.steps for low, high in line.get("trained", []))

    @cached_property
    def passed_over(self) -> int:
        """Samples of refused steps."""
        return sum(high - low for line in self.refused for low, high in line.get("samples", []))

    @cached_property
    def replaced(self) -> int:
        """Samples for which another video stood in."""
        return len({line.get("index") for line in self.failures})

    @property
    def wall_s(self) -> float:
        """Seconds that attempts ran, the undone part with them, the pauses between them not."""
        return sum((life.wall_s for life in self.lives), 0.0)

    def median(self, key: str, *, first: int = 0, stop: int | float = np.inf) -> float:
        """Median of a metric over the surviving lines of steps [first, stop); not-a-number if none has it."""
        lines = [line for line in self.steps if first <= line["step"] < stop]
        values = [v for line in lines if isinstance(v := line.get(key), int | float) and np.isfinite(v)]
        return float(statistics.median(values)) if values else float("nan")


def read_digest(run_dir: Path) -> Digest:
    """The history of a run, without the lines that are damaged."""
    try:
        return Digest(table=read_history(run_dir), damage="")
    except (RuntimeError, UnicodeDecodeError) as error:  # a page with a gap, which it names, says more than none
        return Digest(table=_readable(run_dir), damage=str(error))


def steps_done(standing: Standing, digest: Digest) -> int:
    """Steps finished: progress is seconds ahead of the lines, but stale when an attempt has begun after it."""
    newest = max((a.unix_s for a in digest.table.attempts.values()), default=0.0)
    return digest.finished if standing.step_unix_s < newest else max(standing.step, digest.finished)


def _readable(run_dir: Path) -> Table:
    attempts = read_attempts(run_dir)
    lines: list[Line] = []
    for path in sorted((run_dir / "metrics").glob("attempt-*.jsonl")):
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
                line["undone"] = is_undone(line, attempts.values())
            except (ValueError, KeyError, TypeError):  # counted by nobody: `damage` names the first
                continue
            lines.append(line)
    return Table(lines=lines, attempts=attempts)


def _life(record: Attempt, lines: list[Line], *, later: Iterable[int]) -> Life:
    taken = [line for line in lines if line["kind"] in ("step", "refused")]
    reached = max((line["step"] + 1 for line in taken), default=record.start)
    end = max(min([reached, *later]), record.start)
    ended = max((line["unix_s"] for line in lines), default=record.unix_s)
    undone = [line["unix_s"] for line in taken if line["undone"]]
    kept = [line["unix_s"] for line in taken if not line["undone"]]
    return Life(
        record=record,
        wall_s=float(max(ended - record.unix_s, 0.0)),
        kept=end - record.start,
        undone=reached - end,
        lost_s=float(max(undone) - max(kept, default=record.unix_s)) if undone else 0.0,
    )

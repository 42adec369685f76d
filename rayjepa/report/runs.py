"""The runs in a folder, one line each."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayjepa.report.digest import read_digest, steps_done
from rayjepa.report.numbers import NOTHING, duration, number
from rayjepa.report.phases import phases_in, progress
from rayjepa.report.reading import State, is_run, read_settings, read_standing
from rayjepa.report.tables import phase_after
from rayjepa.report.verdict import value


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What the table of runs says of one; not-a-number where nothing is known yet."""

    name: str
    """Of its folder."""
    state: State
    reason: str
    """Why, in words; empty for a run that goes on or went well."""
    step: int
    """Steps finished."""
    steps: int | None
    phase: str
    """Name of the present phase with its steps; empty for a run of one."""
    rankme: float
    """Of the last examination, as are its floor (a random encoder) and its ceiling."""
    rankme_floor: float
    rankme_ceiling: float
    clips_per_s: float
    """Median over surviving steps of the present phase."""
    quarantined: int
    """Samples for which another video stood in."""
    age_s: float
    """Since the last sign of life."""


def list_runs(folder: Path, *, now: float | None = None) -> list[RunSummary]:
    """The runs in `folder`, or the one that it is, the most recently alive first.

    Raises:  ValueError if there is no such folder, or no run in it.
    """
    now = time.time() if now is None else now
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the folder that holds the runs (`out`, by default runs)")
    found = [folder] if is_run(folder) else sorted(p for p in folder.iterdir() if p.is_dir() and is_run(p))
    if not found:
        raise ValueError(f"{folder} holds no run; `rayjepa pretrain out={folder}` makes one")
    return sorted((_summary(run, now=now) for run in found), key=lambda run: run.age_s)


def runs_table(runs: Sequence[RunSummary]) -> str:
    """Aligned plain text, with a line under the table for each run that did not go well."""
    phase = ["PHASE"] if any(run.phase for run in runs) else []
    head = ("RUN", "STATE", "STEPS", *phase, "RANKME", "FLOOR", "CEILING", "CLIPS/S", "REPLACED", "SEEN")
    rows = [
        (
            run.name,
            run.state,
            f"{run.step:,}/{NOTHING if run.steps is None else f'{run.steps:,}'}",
            *([run.phase or NOTHING] if phase else []),
            *(_known(v) for v in (run.rankme, run.rankme_floor, run.rankme_ceiling, run.clips_per_s)),
            f"{run.quarantined:,}",
            f"{duration(round(run.age_s))} ago",
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{'<' if k < 2 else '>'}{widths[k]}}" for k, cell in enumerate(row)) for row in (head, *rows)
    ]
    reasons = [f"{run.name}: {run.reason}" for run in runs if run.reason and run.state not in ("running", "finished")]
    return "\n".join(line.rstrip() for line in [*lines, *([""] if reasons else []), *reasons])


def _summary(folder: Path, *, now: float) -> RunSummary:
    settings = read_settings(folder)
    standing, digest = read_standing(folder, settings=settings, now=now), read_digest(folder)
    last = digest.health[-1] if digest.health else {}
    phases, done = phases_in(settings), steps_done(standing, digest)
    phase = phase_after(phases, done)
    return RunSummary(
        name=folder.resolve().name,
        state=standing.state,
        reason=standing.reason,
        step=done,
        steps=standing.steps,
        phase=progress(phase, done) if phase else "",
        rankme=value(last, "collapse/rankme"),
        rankme_floor=value(last, "collapse/rankme_floor"),
        rankme_ceiling=value(last, "collapse/rankme_ceiling"),
        clips_per_s=digest.median("rate/clips_per_s", first=phase.first if phase else 0),
        quarantined=digest.replaced,
        age_s=max(now - standing.seen_unix_s, 0.0),
    )


def _known(found: float) -> str:
    return NOTHING if math.isnan(found) else number(found)

"""What the page says of a run's phases: each has clips, schedules and examinations of its own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayjepa.config import Phase, RunConfig, phases_of, streams_of
from rayjepa.config.parts import MAIN
from rayjepa.report.digest import Digest
from rayjepa.report.numbers import NOTHING, number
from rayjepa.report.reading import Settings
from rayjepa.report.tables import table
from rayjepa.report.verdict import value


def phases_in(settings: Settings) -> tuple[Phase, ...]:
    """The run's phases; empty if it has one alone, or its configuration cannot be read."""
    return phases_of(settings.run) if settings.run is not None and settings.run.phases else ()


def progress(phase: Phase, finished: int) -> str:
    """Name of the phase, with its steps that are finished and all of them."""
    return f"{phase.name} {_of(phase, finished)}"


def planned(phases: Sequence[Phase], starts: Mapping[int, int]) -> set[int]:
    """Attempts that began because a phase did, of `starts` by number: no restart."""
    firsts = [next((a for a, start in sorted(starts.items()) if start == p.first), None) for p in phases[1:]]
    return {attempt for attempt in firsts if attempt is not None}


def phases_table(phases: Sequence[Phase], digest: Digest, *, finished: int) -> str:
    """Steps, clips, rates and last examination of each phase."""
    head = ("Phase", "Steps", "Clip", "Tokens", "Clips at once", "Learning rate")
    rows = [_row(phase, digest, finished) for phase in phases]
    return table((*head, "Clips/s", "RankMe", "Random encoder", "Ceiling"), rows, kinds="tnttntnnnn")


def _row(phase: Phase, digest: Digest, finished: int) -> tuple[str, ...]:
    rates = [value(line, "optim/lr") for line in digest.steps if phase.first <= line["step"] < phase.stop]
    examined = [line for line in digest.health if line.get("phase", MAIN) == phase.name]
    last: Mapping[str, Any] = examined[-1] if examined else {}
    streams = [stream.run for stream in streams_of(phase.run)]
    return (
        phase.name,
        _of(phase, finished),
        "; ".join(_clip(run) for run in streams),
        "; ".join(f"{math.prod(run.grid):,}" for run in streams),
        f"{phase.run.micro_batch:,}",
        f"{number(rates[0])} to {number(rates[-1])}" if rates else NOTHING,
        _known(digest.median("rate/clips_per_s", first=phase.first, stop=phase.stop)),
        *(_known(value(last, f"collapse/rankme{part}")) for part in ("", "_floor", "_ceiling")),
    )


def _of(phase: Phase, finished: int) -> str:
    steps = phase.stop - phase.first
    return f"{min(max(finished - phase.first, 0), steps):,} of {steps:,}"


def _clip(run: RunConfig) -> str:
    frames = "image" if run.data.frames == 1 else f"{run.data.frames} frames at {run.data.fps:g} fps"
    return f"{frames}, {run.data.size_px} px"


def _known(found: float) -> str:
    return NOTHING if math.isnan(found) else number(found)

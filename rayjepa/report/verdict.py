"""The health of a run's representation in a headline and a few sentences, no stronger than two gauges allow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rayjepa.config.parts import MAIN
from rayjepa.report.numbers import number, plural

STILL_STD = 0.1
"""Share of the floor (of 0.1, if none is recorded) under which features count as still; a collapse goes far lower."""
POINT = 2.0
"""RankMe under which the features of all clips lie on about one direction."""
FALL = 0.5
"""RankMe under this share of its best so far is pointed out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """`level` colours the box; the words stand without it."""

    level: Literal["none", "good", "watch", "alarm"]
    headline: str
    detail: str


def verdict(health: Sequence[Mapping[str, Any]]) -> Verdict:
    """What the last of the surviving health lines says, beside its floor, its ceiling and its best."""
    if not health:
        return Verdict(
            level="none",
            headline="Not examined yet",
            detail="RankMe and feature std appear after the first examination of the target encoder.",
        )
    last = health[-1]
    rank, floor, ceiling = (value(last, f"collapse/rankme{part}") for part in ("", "_floor", "_ceiling"))
    headline = f"RankMe {number(rank)} of at most {number(ceiling)}; random encoder {number(floor)}"
    where = _where(last)
    alarms = _alarms(last, rank, floor)
    if alarms:
        return Verdict(level="alarm", headline=headline, detail=" ".join([*alarms, where]))
    if rank < floor:
        return Verdict(level="watch", headline=headline, detail=f"{_below(health, rank, floor)} {where}")
    best = max(health, key=lambda line: _or_lowest(value(line, "collapse/rankme")))
    best_rank = value(best, "collapse/rankme")
    if rank < FALL * best_rank:
        fell = f"It was {number(best_rank)} at step {best.get('step', 0):,}: a partial collapse looks like this fall."
        return Verdict(level="watch", headline=headline, detail=f"{fell} {where}")
    if math.isnan(floor):
        return Verdict(level="watch", headline=headline, detail=f"No floor is recorded to compare with. {where}")
    calm = "No sign of collapse: features vary between clips. Whether they are useful, only a probe can tell."
    return Verdict(level="good", headline=headline, detail=f"{calm} {where}")


def value(line: Mapping[str, Any], key: str) -> float:
    """A number of a line; not-a-number where it is missing."""
    found = line.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


def _alarms(last: Mapping[str, Any], rank: float, floor: float) -> list[str]:
    std, std_floor = value(last, "collapse/std_mean"), value(last, "collapse/std_floor")
    alarms: list[str] = []
    if math.isnan(rank):
        alarms.append("RankMe is not a number: a feature is not finite.")
    if rank < POINT:
        alarms.append(f"The features of all clips lie on about one direction (RankMe {number(rank)}): a collapse.")
    if std < STILL_STD * (0.1 if math.isnan(std_floor) else std_floor):
        beside = "" if math.isnan(std_floor) else f" (random encoder {number(std_floor)})"
        alarms.append(f"Features hardly differ between clips, std {number(std)}{beside}: this looks like a collapse.")
    return alarms


def _below(health: Sequence[Mapping[str, Any]], rank: float, floor: float) -> str:
    """Rank under the floor: usual early, when the curve has turned; else a warning."""
    lowest = min(health, key=lambda line: value(line, "collapse/rankme"))
    low = value(lowest, "collapse/rankme")
    said = f"The rank is below that of a random encoder ({number(rank)} < {number(floor)})"
    if low < rank:
        since = f"it was {number(low)} at step {lowest.get('step', 0):,}"
        return f"{said}, but rises: {since}. Early in a run that is usual."
    return f"{said} and has not begun to rise: usual in the first steps, later the beginning of a collapse."


def _where(last: Mapping[str, Any]) -> str:
    clips = last.get("clips")
    kind = "held-out" if last.get("held_out", True) else "training"
    on = f"{plural(clips, f'{kind} clip')}" if isinstance(clips, int) else f"{kind} clips"
    phase = last.get("phase", MAIN)
    where = "" if phase == MAIN else f", in phase {phase}"
    return f"Examined at step {last.get('step', 0):,} on {on}{where}."


def _or_lowest(number: float) -> float:
    return -math.inf if math.isnan(number) else number

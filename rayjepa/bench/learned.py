"""What a study of learning comes to: means, margins over a random encoder, and whether they hold."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rayjepa.bench.learning import POOLS, Kind, Trial

CLAIMED = {"velocity": "grid", "identity": "slots"}
"""Labels that a run must read better than a random encoder, and from what; the others are shown beside them.

Velocity is a way between two places, which a mean over the frame has lost; what a shape is, it is everywhere.
"""
LABELS = ("velocity", "identity", "colour", "position")
MEASURES = {"velocity": "R²", "identity": "accuracy", "colour": "accuracy", "position": "R²"}
KINDS: tuple[Kind, ...] = ("jepa", "random", "twin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One label, read from one kind of features."""

    label: str
    pool: str
    measure: str
    chance: float
    scores: dict[str, list[float]]
    """By kind, one for each seed in their order."""
    margin: float
    """Mean of the run's scores less that of the random encoders'."""
    spread: float
    """Standard deviation over seeds (n - 1), the larger of the two kinds'; 0 with one seed."""

    @property
    def is_claimed(self) -> bool:
        """Whether learning is judged by this row."""
        return CLAIMED.get(self.label) == self.pool

    @property
    def holds(self) -> bool:
        """The margin exceeds twice the spread, of at least three seeds."""
        return len(self.scores["jepa"]) >= 3 and self.margin > 2 * self.spread


def rows(trials: Sequence[Trial]) -> list[Row]:
    """Every label and pool."""
    return [_row(trials, label, pool) for pool in POOLS for label in LABELS]


def _row(trials: Sequence[Trial], label: str, pool: str) -> Row:
    key = f"{label}/{pool}"
    scores = {kind: [trial.probes[key].score for trial in trials if trial.kind == kind] for kind in KINDS}
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (scores["jepa"], scores["random"])]
    return Row(
        label=label,
        pool=pool,
        measure=MEASURES[label],
        chance=trials[0].probes[key].chance,
        scores=scores,
        margin=statistics.mean(scores["jepa"]) - statistics.mean(scores["random"]),
        spread=max(spreads),
    )


def verdict(table: Sequence[Row]) -> dict[str, bool]:
    """For each claimed label, whether its margin holds."""
    return {row.label: row.holds for row in table if row.is_claimed}


def collapsed(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """For run and twin: RankMe and mean std of the features at the end over those at the start, one for each seed."""
    found: dict[str, list[float]] = {}
    for name in ("rankme", "std_mean"):
        for kind in ("jepa", "twin"):
            ends = [(t.health[0], t.health[-1]) for t in trials if t.kind == kind]
            key = f"collapse/{name}"
            found[f"{kind} {name}"] = [last[key] / first[key] for first, last in ends]
    return found


def text(trials: Sequence[Trial], table: Sequence[Row]) -> str:
    """Tables for a terminal."""
    lines = [_line("probe", "measure", "run", "random", "twin", "chance", "margin", "2 x spread", "")]
    for row in table:
        cells = [_mean(row.scores[kind]) for kind in KINDS]
        says = ("holds" if row.holds else "does not hold") if row.is_claimed else ""
        lines.append(
            _line(
                f"{row.label} of {row.pool}",
                row.measure,
                *cells,
                f"{row.chance:.3f}",
                f"{row.margin:+.3f}",
                f"{2 * row.spread:.3f}",
                says,
            )
        )
    lines += ["", _line("gauge", "seed", "random", "run: first", "last", "twin: first", "last", "", "")]
    for name in ("rankme", "std_mean"):
        key = f"collapse/{name}"
        for seed in sorted({trial.seed for trial in trials}):
            own = {trial.kind: trial for trial in trials if trial.seed == seed}
            cells = [own["random"].gauges[key]]
            cells += [own[kind].health[at][key] for kind in ("jepa", "twin") for at in (0, -1)]
            lines.append(_line(name, str(seed), *(f"{value:.3g}" for value in cells), "", ""))
    return "\n".join(lines)


def figures(trials: Sequence[Trial], table: Sequence[Row]) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    return {
        "holds": verdict(table),
        "collapse, last over first": collapsed(trials),
        "rows": [{**asdict(row), "holds": row.holds} for row in table],
        "trials": [asdict(trial) for trial in trials],
    }


def _mean(values: Sequence[float]) -> str:
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _line(first: str, second: str, *cells: str) -> str:
    return f"{first:<18} {second:<9}" + "".join(f"{cell:>14}" for cell in cells[:-1]) + f"  {cells[-1]}"

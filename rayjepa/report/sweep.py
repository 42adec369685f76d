"""What a sweep found: its trials as rows, read from the study, and the best as a preset."""

import logging
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from rayjepa.config import resolve
from rayjepa.config.sweep import Sweep, differences
from rayjepa.health.scores import score_of
from rayjepa.report.numbers import number
from rayjepa.train.folder import replace_text

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "finished", "stopped early", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trial."""

    number: int
    state: State
    reason: str
    """Why it failed or was stopped early; empty otherwise."""
    knobs: dict[str, Any]
    """Its values of the axes, by dotted key."""
    reached: int
    """Steps finished."""
    metric: float | None
    """At the last examination; none: it came to none."""
    floor: float | None
    """The metric of an untrained encoder."""
    ceiling: float | None
    run_dir: Path


def open_storage(sweep_dir: Path) -> RDBStorage:
    """The database that holds the sweep's study; made if it is not there. Only the sweep's driver writes to it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A reader, such as optuna-dashboard, may hold the file for a moment.
    return RDBStorage(f"sqlite:///{sweep_dir / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}})


def read_rows(sweep_dir: Path) -> list[Row]:
    """The trials of a sweep in the order of their numbers; none before its study is there."""
    if not (sweep_dir / "study.db").is_file():
        return []
    storage = open_storage(sweep_dir)
    studies = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=studies[0], storage=storage).get_trials(deepcopy=False) if studies else []
    rows = [_row(sweep_dir, trial) for trial in trials]
    storage.engine.dispose()
    return rows


def best_of(rows: Sequence[Row], *, mode: str) -> Row | None:
    """The best of the trials that came furthest; none if no trial was ever examined.

    A trial that was stopped early is not compared with one that went on: the metric of a healthy run falls at first.
    """
    sign = 1 if mode == "max" else -1
    scored = [row for row in rows if row.metric is not None and row.state in ("finished", "stopped early")]
    return max(scored, key=lambda row: (row.reached, sign * (row.metric or 0.0)), default=None)


def write_best(sweep_dir: Path, sweep: Sweep, best: Row) -> Path:
    """Write the best trial as a preset, best.yaml, that gives its very configuration; return the path."""
    score = score_of(sweep.space.metric)
    beside = f"floor {number(best.floor)} (an untrained encoder)" if best.floor is not None else "no floor is known"
    if best.ceiling is not None:
        beside += f", ceiling {number(best.ceiling)}"
    run = sweep.trial(best.knobs, name="best", out=sweep_dir)
    knobs = ", ".join(f"{key}={value}" for key, value in best.knobs.items())
    said = [
        f"{score.name} {number(best.metric)} on held-out clips after {best.reached} steps: {beside}.",
        f"Trial {best.number} of {sweep_dir.name}, {best.state}: {knobs}.",
        f"{score.caution[0].upper()}{score.caution[1:]}.",
    ]
    original = _steps_of(sweep.preset)
    if original is not None and original != run.steps:
        said.append(
            f"The trial's length is {run.steps} steps, the preset {sweep.preset} has {original}: schedules and "
            "the best momentum go with the length."
        )
    wrapped = [f"# {line}" for sentence in said for line in textwrap.wrap(sentence, 116)]
    text = yaml.safe_dump(differences(run), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    replace_text(sweep_dir / "best.yaml", "\n".join([*wrapped, text]))
    return sweep_dir / "best.yaml"


def _row(sweep_dir: Path, trial: FrozenTrial) -> Row:
    facts, examined = trial.user_attrs, trial.intermediate_values
    return Row(
        number=trial.number,
        state=STATES[trial.state],
        reason=facts.get("reason", ""),
        knobs=trial.params or trial.system_attrs.get("fixed_params", {}),
        reached=int(facts.get("reached", max(examined, default=0))),
        metric=examined[max(examined)] if examined else None,
        floor=facts.get("floor"),
        ceiling=facts.get("ceiling"),
        run_dir=trial_dir(sweep_dir, trial.number),
    )


def trial_dir(sweep_dir: Path, number: int) -> Path:
    """The run folder of a trial."""
    return sweep_dir / "trials" / f"{number:03d}"


def _steps_of(preset: str) -> int | None:
    """Steps of a preset; none if its file is gone."""
    try:
        return resolve(preset, {}).steps
    except ValueError:
        return None

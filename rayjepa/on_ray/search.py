"""Optuna proposes, ASHA stops: both over a study in SQLite, which alone says what a sweep has done."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from rayjepa.config import ConfigError
from rayjepa.config.space import Axis
from rayjepa.config.sweep import Sweep
from rayjepa.data.manifest import Manifest
from rayjepa.data.twin import Twin
from rayjepa.on_ray.orphans import remove_orphans
from rayjepa.report.sweep import open_storage, trial_dir
from rayjepa.train import folder

log = logging.getLogger(__name__)


class Search(OptunaSearch):
    """Makes the run folder of each trial that Optuna proposes, and writes to the study what became of it.

    Trials that were interrupted wait in the study (`WAITING`) and are proposed again before any new one, with the same
    number and so the same folder. Ray's own pickles of the search are not read.
    """

    def __init__(self, sweep: Sweep, sweep_dir: Path, videos: Manifest | Twin) -> None:
        self.sweep, self.sweep_dir, self.videos = sweep, sweep_dir, videos
        self.storage = open_storage(sweep_dir)
        space, known = sweep.space, optuna.get_all_study_names(self.storage)
        done = len(optuna.load_study(study_name=known[0], storage=self.storage).trials) if known else 0
        super().__init__(
            space={axis.key: distribution(axis) for axis in space.axes},
            metric=space.metric,
            mode=space.mode,
            # A resumed sampler with the first seed would draw the first trials again.
            sampler=TPESampler(seed=space.seed + done, n_startup_trials=min(10, max(3, space.trials // 2))),
            storage=self.storage,
            study_name=sweep_dir.name,
        )
        self.study = cast("optuna.Study", self._ot_study)
        if not known:
            self.study.set_user_attr("metric", f"{space.metric} on held-out clips, {space.mode}")
            if (own := sweep.defaults()) is not None:
                self.study.enqueue_trial(own)  # the preset's own values come first: what the others are to beat
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    @property
    def left(self) -> int:
        """Trials that have still to come to an end."""
        ended = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        return max(0, self.sweep.space.trials - ended)

    def suggest(self, trial_id: str) -> Any:
        """What the trial is to do, as Ray Tune asks for it: its run folder."""
        begun = [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
        if (self.sweep_dir / "stop").exists() or len(begun) >= self.sweep.space.trials:
            return Searcher.FINISHED
        knobs = cast("dict[str, Any]", super().suggest(trial_id))
        trial = self._ot_trials[trial_id]
        run_dir = trial_dir(self.sweep_dir, trial.number)
        trial.set_user_attr("ray_trial_id", trial_id)
        trial.set_user_attr("run_dir", str(run_dir))
        try:
            run = self.sweep.trial(knobs, name=run_dir.name, out=run_dir.parent)
        except ConfigError as error:  # a combination inside the ends that no run can have
            self._end(trial_id, TrialState.FAIL, str(error))
            return None
        if not (run_dir / "manifest.parquet").is_file():  # it is written last
            shutil.rmtree(run_dir, ignore_errors=True)
            folder.create(run, self.videos, preset=self.sweep.preset)
        return {"run_dir": str(run_dir), "sweep_dir": str(self.sweep_dir), "metric": self.sweep.space.metric}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An examination of the trial's run."""
        trial, value = self._ot_trials[trial_id], result.get(self.sweep.space.metric)
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        if value is not None and result["step"] not in frozen.intermediate_values:
            trial.report(value, result["step"])
        for key in ("floor", "ceiling"):
            if result.get(key) is not None and key not in frozen.user_attrs:
                trial.set_user_attr(key, result[key])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial's end; `error` without a result says that its process died too often."""
        result = result or {}
        self.on_trial_result(trial_id, result)
        self._ot_trials[trial_id].set_user_attr("reached", result.get("reached", 0))
        match result.get("state"):
            case "finished" if result.get(self.sweep.space.metric) is not None:
                self._end(trial_id, TrialState.COMPLETE, value=result[self.sweep.space.metric])
            case "stopped":
                self._end(trial_id, TrialState.PRUNED, result["reason"])
            case "interrupted":
                self.storage.set_trial_state_values(self._ot_trials.pop(trial_id)._trial_id, TrialState.WAITING)
            case _:
                if error:
                    remove_orphans()
                lost = (
                    "its driver died more often than cluster.max_failures; "
                    f"Ray Tune's record is {self.sweep_dir / 'ray' / '*' / trial_id / 'error.txt'}"
                )
                self._end(trial_id, TrialState.FAIL, result.get("reason") or lost)

    def save(self, checkpoint_path: str) -> None:
        """Leave Ray Tune's snapshot empty: the study is the record."""
        Path(checkpoint_path).touch()

    def _end(self, trial_id: str, state: TrialState, reason: str = "", *, value: float | None = None) -> None:
        trial = self._ot_trials.pop(trial_id)
        if reason:
            trial.set_user_attr("reason", reason)
        self.study.tell(trial, value, state=state)


class Halving(ASHAScheduler):
    """ASHA by finished steps, which asks a trial's run to stop rather than have Ray Tune drop its process.

    Dropped, a trial leaves its workers' placement group to a cleaner that needs the dashboard; asked, its run saves
    once, its workers end, and the trial is over when their CPUs are free. Trials are known by their run folder, so that
    a resumed sweep compares with all trials before it, and does not stop a trial twice at one rung.
    """

    def __init__(self, sweep: Sweep, search: Search) -> None:
        space = sweep.space
        # One step more than there are, so that the last examination is an examination like all others.
        last = max(sweep.base.steps, space.grace_steps) + 1
        super().__init__(
            time_attr="step",
            metric=space.metric,
            mode=space.mode,
            max_t=last,
            grace_period=space.grace_steps,
            reduction_factor=space.reduction,
        )
        self.reduction, self.name = space.reduction, space.metric
        for trial in search.study.get_trials(deepcopy=False):
            known = _known(str(trial_dir(search.sweep_dir, trial.number)))
            super().on_trial_add(cast("Any", None), known)
            for step, value in sorted(trial.intermediate_values.items()):
                super().on_trial_result(cast("Any", None), known, {"step": step, space.metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called by Ray Tune for each trial that begins."""
        super().on_trial_add(tune_controller, _known(trial.config["run_dir"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Always lets the trial go on, until its run has ended."""
        known = _known(trial.config["run_dir"])
        if super().on_trial_result(tune_controller, known, result) == TrialScheduler.STOP:
            share = f"the best 1/{self.reduction:g} of the trials that came so far"
            value = result[self.name]
            reason = f"{self.name} {value:.4g} after {result['step']} steps was not among {share}"
            if not (stop := Path(known.trial_id) / "stop").exists():  # asked before: it is about to end
                folder.replace_text(stop, reason)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called by Ray Tune when a trial has ended."""
        super().on_trial_complete(tune_controller, _known(trial.config["run_dir"]), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Called by Ray Tune for a trial that never began."""
        super().on_trial_remove(tune_controller, _known(trial.config["run_dir"]))


def _known(run_dir: str) -> Any:
    """What ASHA knows of a trial: an identity that outlives Ray Tune's."""
    return SimpleNamespace(trial_id=run_dir)


def distribution(axis: Axis) -> BaseDistribution:
    """The axis as Optuna has it."""
    match axis.kind:
        case "choice":
            return CategoricalDistribution(axis.values)
        case "int":
            return IntDistribution(int(axis.low), int(axis.high), step=int(axis.step or 1))
        case "loguniform":
            return FloatDistribution(axis.low, axis.high, log=True)
        case "uniform" | "quniform":
            return FloatDistribution(axis.low, axis.high, step=axis.step)

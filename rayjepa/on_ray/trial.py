"""One trial of a sweep: a run folder, the trainer of every run, and its examinations told to Ray Tune."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray import tune

from rayjepa.health.scores import score_of
from rayjepa.on_ray.cluster import ENVIRONMENT
from rayjepa.on_ray.orphans import remove_orphans
from rayjepa.report import write_report
from rayjepa.report.reading import read_json
from rayjepa.train import folder
from rayjepa.train.outcome import Outcome
from rayjepa.train.restart import finished_steps, restart_point

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Between looks at the run's lines."""
BEAT_S = 5.0
"""Between signs of life."""
CLAIM_S = 2 * folder.SILENCE_S
"""How long a dead driver's claim may look alive, at most."""
LEAVE_S = 30.0
"""How long a trial that Ray Tune drops waits for its run to end."""


class Trial(tune.Trainable):
    """Continues the run of its folder, from the start if it is new; a call of `step` ends at the next examination.

    A class and not a function, since Ray Tune waits for `cleanup` before it lets the process go.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Called by Ray Tune in the trial's own process; it must not take long, so nothing is trained here."""
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        self.run_dir, self.sweep_dir = Path(config["run_dir"]), Path(config["sweep_dir"])
        self.score = score_of(config["metric"])
        self.training: Training | None = None
        self.lines = health_lines(self.run_dir)
        self.last: dict[str, Any] = {}

    def step(self) -> dict[str, Any]:
        """The run's next examination, or with `done` how it ended: finished, stopped, interrupted or failed."""
        try:
            return self._step()
        except (RuntimeError, ValueError, OSError) as error:  # the user is to read why, not Ray Tune's traceback
            return self._ended("failed", _words(error))

    def cleanup(self) -> None:
        """Called by Ray Tune before it ends the process."""
        if self.training is not None and self.training.is_alive():
            (self.run_dir / "stop").touch()
            self.training.join(LEAVE_S)

    def _step(self) -> dict[str, Any]:
        if self.training is None:
            if self._leaving():
                return self._ended("interrupted")
            self.training = Training(self.run_dir)
            self.training.start()
        while True:
            ended = not self.training.is_alive()  # asked first, so that no line comes after
            # Looked at before the lines: examinations may come faster than Ray Tune takes them.
            if not ended and self._leaving() and not self._leave(self.training):
                return self._ended("interrupted")
            if (line := next(self.lines, None)) is not None:
                if told := self._told(line):
                    return told
            elif ended:
                return self._ended(*self.training.ending())
            else:
                self.training.join(POLL_S)

    def _told(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """A health line as Ray Tune gets it; none for one that it has, or that no trial can be chosen by."""
        value, step = line.get(self.score.name), line["step"]
        if step <= self.last.get("step", 0) or value is None:
            return None
        assert self.training is not None, "lines are followed while the run is trained"
        if not math.isfinite(value):
            self.training.doom = f"{self.score.name} is {value} after {step} steps: a feature is not finite"
            (self.run_dir / "stop").touch()
            return None
        beside = {"floor": self.score.floor, "ceiling": self.score.ceiling}
        self.last = {self.score.name: value, "step": step} | {k: line.get(v) for k, v in beside.items() if v}
        return dict(self.last)

    def _ended(self, state: str, reason: str = "") -> dict[str, Any]:
        saved = restart_point(self.run_dir)
        reached = max(finished_steps(saved) if saved else 0, self.last.get("step", 0))
        return {**self.last, "state": state, "reason": reason, "reached": reached, "done": True}

    def _leaving(self) -> bool:
        """Whether the whole sweep is to stop."""
        return (self.sweep_dir / "stop").exists()

    def _leave(self, training: "Training") -> bool:
        """Ask the run to save and stop; false if it has nothing to save yet and need not be waited for."""
        if not (self.run_dir / "progress.json").exists():
            return not training.is_alive()
        if not (self.run_dir / "stop").exists():
            (self.run_dir / "stop").touch()
        return True


class Training(threading.Thread):
    """The trainer at work on a run folder, and how it ended."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(name="trial", daemon=True)
        self.run_dir, self.doom = run_dir, ""
        self.run_config = folder.reopen(run_dir, {})[0]
        self._ending: tuple[str, str] = ("failed", "its thread died")

    def ending(self) -> tuple[str, str]:
        """State and reason, once the thread is done."""
        return self._ending

    def run(self) -> None:
        """Train, unless the run has come to its end before."""
        old = read_json(self.run_dir / "outcome.json")
        if old.get("state") == "finished" or old.get("reason"):  # ended, and the sweep's driver was killed just then
            self._ending = (str(old["state"]), str(old.get("reason", "")))
            return
        try:
            remove_orphans()  # this trial's too, if its driver was killed and Ray Tune began it again
            owner = claimed(self.run_dir)
        except Exception as error:  # noqa: BLE001  nothing was begun, and the folder may be another's
            self._ending = ("failed", _words(error))
            return
        try:
            with beating(self.run_dir):
                outcome = self._train(owner)
        except Exception as error:  # noqa: BLE001  whatever it is, the trial failed by it
            saved = restart_point(self.run_dir)
            self._conclude("failed", _words(error), finished=finished_steps(saved) if saved else 0)
            return
        asked = (self.run_dir / "stop").read_text() if (self.run_dir / "stop").exists() else ""
        if self.doom or outcome.reason:
            self._conclude("failed", self.doom or outcome.reason, finished=outcome.finished)
        elif outcome.finished >= self.run_config.steps:
            self._conclude("finished", "", finished=outcome.finished)
        else:
            self._conclude("stopped", asked, finished=outcome.finished)

    def _train(self, owner: str) -> Outcome:
        run = self.run_config
        if run.cluster.workers == 0:
            from rayjepa.train.session import alone

            return alone(run, self.run_dir, owner=owner)
        from rayjepa.on_ray.trainer import fit

        return fit(run, self.run_dir, owner=owner, watch=threading.Thread.join)

    def _conclude(self, state: str, reason: str, *, finished: int) -> None:
        folder.conclude(self.run_dir, state, finished=finished, reason=reason)
        with suppress(OSError, ValueError):
            write_report(self.run_dir)
        self._ending = (state if reason or state != "stopped" else "interrupted", reason)


def _words(error: Exception) -> str:
    text = str(error).strip()
    return text if isinstance(error, RuntimeError | ValueError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def beating(run_dir: Path) -> Iterator[None]:
    """Show machines that cannot see this process that the run's driver lives."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with suppress(OSError):
                folder.beat(run_dir)

    threading.Thread(target=beat, name="beat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def claimed(run_dir: Path) -> str:
    """Become the run's driver; one that was killed a moment ago may look alive for a while.

    Raises:  RuntimeError if it still does after CLAIM_S.
    """
    until = time.monotonic() + CLAIM_S
    while folder.driver_alive(run_dir) and time.monotonic() < until:
        time.sleep(POLL_S)
    return folder.claim(run_dir)


def health_lines(run_dir: Path) -> Iterator[dict[str, Any] | None]:
    """The run's examinations in the order they are written, over all attempts; none where there is no further yet."""
    places: dict[Path, int] = {}
    while True:
        for path in sorted((run_dir / "metrics").glob("attempt-*.jsonl")):
            with path.open("rb") as file:
                file.seek(places.get(path, 0))
                for text in file:
                    if not text.endswith(b"\n"):  # being written
                        break
                    places[path] = places.get(path, 0) + len(text)
                    if b'"kind": "health"' in text:
                        yield json.loads(text)
        yield None

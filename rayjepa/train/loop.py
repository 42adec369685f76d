"""The loop: clips in, steps out, and everything it needs an argument."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rayjepa.config import RunConfig, streams_of
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec
from rayjepa.masks import splits_for
from rayjepa.objective import score
from rayjepa.train.engine import Engine
from rayjepa.train.history import History
from rayjepa.train.ledger import Ledger
from rayjepa.train.meter import Meter, Metrics, Reading
from rayjepa.train.outcome import StopRun
from rayjepa.train.schedules import clip_norm, learning_rate, momentum, weight_decay
from rayjepa.views import to_views

log = logging.getLogger(__name__)

Report = Callable[[Metrics, Path | None], None]
"""Gets the metrics of each reading, with `step`, and a checkpoint's folder if one was written; called by all ranks."""
Health = Callable[[int], Mapping[str, Any]]
"""Examines the target after so many steps and returns what to record; called by all ranks."""


@runtime_checkable
class Save(Protocol):
    """Writes a checkpoint and returns its folder, complete; called by all ranks."""

    def __call__(self, *, finished: int, ledger: Ledger) -> Path: ...


def train(
    engine: Engine,
    batches: Iterable[ClipBatch],
    run: RunConfig,
    *,
    start: int,
    first: int = 0,
    report: Report,
    history: History | None = None,
    save: Save | None = None,
    health: Health | None = None,
    stop: Callable[[], bool] = lambda: False,
    begin: Callable[[int], None] = lambda step: None,
    ledger: Ledger | None = None,
) -> int:
    """Take steps `start` to the last of the phase; return how many are finished then, fewer if any rank's `stop` was.

    `run` is of one phase, steps [`first`, `first` + train.steps): they count on through all phases, schedules do not.
    `batches` are this rank's micro-batches from step `start` on, and `ledger` is what the checkpoint there knew. A
    refused step is passed over: its samples are spent, schedules wait. `begin` is told of each step before it is taken.
    Raises:  StopRun, on all ranks, if more steps of the phase than optim.max_refused were refused or more samples than
             data.max_bad_share could not be decoded; RuntimeError, on its rank, if the stream is not the tape.
    """
    meter, ledger, finished = Meter(engine, run, iter(batches)), ledger or Ledger(), start
    streams = {stream.name: (number, stream.run) for number, stream in enumerate(streams_of(run))}
    last = first + run.train.steps
    if start == first:
        _examine(health, history, finished=start)
    for step in range(start, last):
        begin(step)
        progress = step - first - ledger.refused_since(first)
        lr, keep, decay = learning_rate(run, progress), momentum(run, progress), weight_decay(run, progress)
        for clips in meter.take(step):
            number, own = streams[clips.specs[0].stream]
            views, splits = to_views(clips, own, device=engine.device), splits_for(own, step=step, specs=clips.specs)
            prediction = engine.forward(views, splits, clips.index, stream=number)
            scores = score(prediction, run.objective)
            engine.backward(scores.loss / run.train.accumulation)
            meter.saw(scores.metrics, stream=clips.specs[0].stream if run.streams else None)
        clip = clip_norm(run, progress)
        taken = engine.step(lr=lr, weight_decay=decay, momentum=keep, clip=clip, stop=stop())
        meter.stepped(taken, {"optim/lr": lr, "ema/momentum": keep})
        finished = step + 1
        ledger.refuse(step, taken.refused)
        too_many = ledger.refused_since(first) > run.optim.max_refused
        is_last = finished == last or taken.stop
        saving = save is not None and (is_last or finished % run.checkpoint.every_steps == 0) and not too_many
        reading = saving or too_many or is_last or finished % run.report.every_steps == 0
        metrics = _record(meter.read(), step, ledger, history) if reading else {}
        if too_many:
            raise StopRun(_refusal(ledger, run, meter.specs, first=first, rank=engine.rank))
        if reading:
            ledger.require_good_data(samples=finished * run.train.clips, limit=run.data.max_bad_share)
        if finished % run.health.every_steps == 0 or finished == last:
            _examine(health, history, finished=finished)
        if history is not None and (saving or is_last):
            history.flush()  # before the checkpoint is complete: what it holds is in the history, or it is not resumed
        folder = save(finished=finished, ledger=ledger) if save is not None and saving else None
        if reading:
            report(metrics, folder)
        if taken.stop:
            log.info("asked to stop: %d of %d steps are finished", finished, last)
            break
    return finished


def _record(reading: Reading, step: int, ledger: Ledger, history: History | None) -> Metrics:
    """Put a reading into ledger and history; return its metrics for the report."""
    ledger.failures.extend(reading.failures)
    if history is not None:
        for refused in reading.refused:
            history.append("refused", **refused)
        for failure in reading.failures:
            history.append("failure", **failure)
        if reading.steps:
            history.append("step", step=step, trained=reading.trained, steps=reading.steps, **reading.metrics)
        if reading.refused:
            history.flush()
    return {"step": step, **reading.metrics}


def _examine(health: Health | None, history: History | None, *, finished: int) -> None:
    if health is not None:
        values = health(finished)
        if history is not None:
            history.append("health", step=finished, **values)


def _refusal(ledger: Ledger, run: RunConfig, specs: Sequence[ClipSpec], *, first: int, rank: int) -> str:
    """What to tell the user whose run stops before a bad update, in the phase that began with step `first`."""
    step, reason = ledger.refused[-1]["step"], ledger.refused[-1]["reason"]
    sample = step * run.train.clips
    mine = ", ".join(f"{spec.index} {spec.uri}" for spec in specs[:8]) + (", …" if len(specs) > 8 else "")
    return (
        f"step {step}: {reason}; stopped before the update, with optim.max_refused={run.optim.max_refused} and "
        f"{ledger.refused_since(first)} refused. Its samples are {sample} to {sample + run.train.clips - 1}; "
        f"rank {rank} had {mine}. Resume from the last checkpoint with a lower optim.lr or optim.clip, or pass over "
        "such steps with a higher optim.max_refused"
    )

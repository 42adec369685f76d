"""One rank's part in a run, from building its engine to the last checkpoint; on Ray or in this process."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rayjepa.config import Phase, RunConfig, phase_at
from rayjepa.data.batch import ClipBatch
from rayjepa.data.blocks import Timing
from rayjepa.data.decoders import Decoders
from rayjepa.data.eras import era_at, open_tape, read_eras
from rayjepa.data.tape import Tape
from rayjepa.health.held_out import HeldOut
from rayjepa.interop.start import begin
from rayjepa.train import checkpoint, history
from rayjepa.train.ahead import cover
from rayjepa.train.attempts import Attempt
from rayjepa.train.board import open_board
from rayjepa.train.engine import Engine, default_device, make_engine
from rayjepa.train.folder import replace_text
from rayjepa.train.history import History
from rayjepa.train.ledger import Ledger, record_held_out
from rayjepa.train.loop import Report, train
from rayjepa.train.outcome import Outcome, StopRun, goes_on
from rayjepa.train.profile import Profile
from rayjepa.train.shortage import explained

log = logging.getLogger(__name__)


def take_part(
    run: RunConfig,
    run_dir: Path,
    attempt: Attempt,
    batches: Iterable[ClipBatch],
    *,
    tape: Tape,
    device: torch.device | None = None,
    report: Report = lambda metrics, folder: None,
) -> Outcome:
    """Train this rank's share of the run from where `attempt` starts to the end of that phase; every rank calls it.

    `batches` begin with the attempt's first step, and `tape` is that of its phase. A refused step or bad data ends the
    run with a reason, on all ranks alike and without an error, since another start of the worker group would meet the
    same samples.
    """
    phase = phase_at(run, attempt.start)
    torch.set_num_threads(phase.run.train.threads)
    device = device or default_device()
    with explained(phase.run, device=device, phase=_own(phase)):
        engine = make_engine(phase.run, device=device)
    progress = Progress(run, phase, run_dir, attempt, rank=engine.rank)
    progress.say("loading")
    try:
        with explained(phase.run, device=device, phase=_own(phase)):
            return _train(
                engine, run, run_dir, attempt, batches, phase=phase, tape=tape, report=report, progress=progress
            )
    finally:
        engine.close()


def _train(
    engine: Engine,
    whole: RunConfig,
    run_dir: Path,
    attempt: Attempt,
    batches: Iterable[ClipBatch],
    *,
    phase: Phase,
    tape: Tape,
    report: Report,
    progress: "Progress",
) -> Outcome:
    run = phase.run
    ledger = _restored(engine, run, run_dir, attempt, tape)
    progress.say("decoding held-out clips")
    examining = partial(explained, run, device=engine.device, phase=_own(phase), examining=True)
    with examining():
        held_out = HeldOut(run, tape, rank=engine.rank, world=engine.world, device=engine.device)
    board = open_board(run_dir, start=attempt.start) if run.report.tensorboard and engine.rank == 0 else None
    lines = History(run_dir, attempt=attempt.attempt, rank=engine.rank, board=board)
    record_held_out(lines, held_out.batches, step=attempt.start)
    _tell_manifests(lines, run_dir, tape, range(attempt.start, phase.stop))
    write = partial(checkpoint.save, engine, run_dir, whole, attempt=attempt.attempt)

    def save(*, finished: int, ledger: Ledger) -> Path:
        progress.say("saving")
        return write(finished=finished, ledger=ledger, fingerprint=_fingerprint(run_dir, tape, finished - 1))

    def health(finished: int) -> Mapping[str, Any]:
        with examining():
            values = held_out.examine(engine.target)
        progress.say("training", **values)
        of = {"phase": phase.name} | ({"stream": held_out.stream} if held_out.stream else {})
        return {**of, "clips": held_out.clips, "held_out": not held_out.is_train, **values}

    def tell(metrics: Mapping[str, Any], folder: Path | None) -> None:
        progress.read(metrics, quarantined=len(ledger.failures))
        report(dict(metrics), folder)

    progress.say("waiting for the first clips")
    profile = Profile(whole, run_dir, attempt, rank=engine.rank, device=engine.device)
    finished, reason = None, ""
    try:
        finished = train(
            engine,
            batches,
            run,
            start=attempt.start,
            first=phase.first,
            report=tell,
            history=lines,
            save=save,
            health=health,
            stop=progress.stop_asked,
            begin=profile.begin,
            ledger=ledger,
        )
    except StopRun as stop:
        reason = str(stop)
    finally:
        profile.close()
        lines.close()
    return _outcome(run_dir, finished, reason)


def _own(phase: Phase) -> str:
    """Name of a phase that has knobs of its own, beside those of the run."""
    return phase.name if phase.first else ""


def _outcome(run_dir: Path, finished: int | None, reason: str) -> Outcome:
    """What the loop came to; a run that ended with a reason is as far as its last checkpoint."""
    newest = checkpoint.restart_point(run_dir)
    if finished is None:
        finished = checkpoint.finished_steps(newest) if newest else 0
    return Outcome(finished=finished, checkpoint=str(newest) if newest else None, reason=reason)


def _restored(engine: Engine, run: RunConfig, run_dir: Path, attempt: Attempt, tape: Tape) -> Ledger:
    """Load the checkpoint that the attempt starts from, else model.init; what was refused and replaced before it."""
    if attempt.checkpoint is None:
        begin(engine, run, run_dir)
        return Ledger()
    expected = _fingerprint(run_dir, tape, attempt.start - 1)
    state = checkpoint.restore(engine, run_dir / attempt.checkpoint, fingerprint=expected)
    return Ledger(refused=state.refused, failures=state.ledger)


def _tell_manifests(lines: History, run_dir: Path, tape: Tape, steps: range) -> None:
    """Say from which manifest `steps` are drawn, and at which of them another begins."""
    lines.append("manifest", step=steps.start, fingerprint=_fingerprint(run_dir, tape, steps.start))
    for era in read_eras(run_dir / "manifest.parquet"):
        if era.first in steps[1:]:  # the checkpoints at and after it are lost
            lines.append("manifest", step=era.first, fingerprint=era.fingerprint)


def _fingerprint(run_dir: Path, tape: Tape, step: int) -> str:
    """Of the manifest that a step's samples are drawn from."""
    eras = read_eras(run_dir / "manifest.parquet")
    return era_at(eras, step).fingerprint if eras else tape.fingerprint


class Progress:
    """Rank 0's progress.json, which the command line shows, and the file `stop`, by which it asks the run to end."""

    def __init__(
        self, run: RunConfig, phase: Phase, run_dir: Path, attempt: Attempt, *, rank: int, every_s: float = 0.5
    ) -> None:
        self.run, self.run_dir, self.rank, self.every_s = phase.run, run_dir, rank, every_s
        self._covered = ""
        self._now: dict[str, Any] = {
            "attempt": attempt.attempt,
            "step": attempt.start,
            "steps": run.steps,
            "phase": phase.name,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._state, self._said_s, self._looked_s, self._asked = "", 0.0, 0.0, False

    def say(self, state: str, **facts: Any) -> None:
        """Publish what this rank does; the same state at most twice a second."""
        if self.rank != 0:
            return
        self._now |= facts
        if "data/wait_ms" in facts:
            self._now["data/wait_share"] = facts["data/wait_ms"] / max(facts["time/step_ms"], 1e-9)
        if state == self._state and time.monotonic() - self._said_s < self.every_s:
            return
        self._state, self._said_s = state, time.monotonic()
        text = json.dumps({**self._now, "state": state, "unix_s": time.time()})
        replace_text(self.run_dir / "progress.json", text)

    def read(self, metrics: Mapping[str, Any], *, quarantined: int) -> None:
        """Publish a reading of the loop; the first that can tell says how far prefetch covers decoding."""
        if not self._covered and (covered := cover(self.run, metrics)) and self.rank == 0:
            self._covered = covered
            log.info("%s", covered)
            self.say("training", ahead=covered)
        done = {"step": int(metrics["step"]) + 1}  # people count finished steps
        self.say("training", quarantined=quarantined, **{**metrics, **done})

    def stop_asked(self) -> bool:
        """Whether somebody made the file `stop`; looked up at most once a second."""
        if self.rank == 0 and not self._asked and time.monotonic() - self._looked_s >= 1:
            self._looked_s = time.monotonic()
            self._asked = (self.run_dir / "stop").exists()
        return self._asked


def alone(run: RunConfig, run_dir: Path, *, owner: str) -> Outcome:
    """Train the run in this process, phase by phase, without Ray: the same tape, decoder, loop and folder."""
    while True:
        attempt = history.begin_attempt(run_dir, owner=owner, world=1)
        phase = phase_at(run, attempt.start)
        tape = tape_of(phase, run_dir, start=attempt.start)
        with Decoders(phase.run) as decoders:
            clips = local_batches(phase.run, tape, decoders, start=attempt.start)
            outcome = take_part(run, run_dir, attempt, clips, tape=tape)
        if not goes_on(run, run_dir, outcome):
            return outcome


def tape_of(phase: Phase, run_dir: Path, *, start: int | None = None) -> Tape:
    """The samples of a phase, over the videos of the run's folder; those before step `start` are not asked for."""
    clips = phase.run.train.clips
    return open_tape(
        phase.run,
        run_dir / "manifest.parquet",
        first=phase.first * clips,
        start=None if start is None else start * clips,
    )


def local_batches(run: RunConfig, tape: Tape, decoders: Decoders, *, start: int) -> Iterator[ClipBatch]:
    """The tape from step `start`, decoded in turn."""
    for first in range(start * run.train.clips, tape.samples.stop, run.micro_batch):
        began = time.monotonic()
        decoded = decoders.clips([tape.spec(i) for i in range(first, first + run.micro_batch)], tape.spec)
        yield ClipBatch(
            index=torch.tensor([spec.index for spec in decoded.specs]),
            pixels=torch.from_numpy(decoded.pixels),
            layout=torch.from_numpy(decoded.layout),
            specs=tuple(decoded.specs),
            failures=decoded.failures,
            timing=Timing(
                decode_s=time.monotonic() - began,
                idle_s=0.0,
                cpu_s=decoded.cpu_s,
                read_s=decoded.read_s,
                read_bytes=float(decoded.read_bytes),
                actor=0.0,
            ),
        )

"""A trace of a few steps, for chrome://tracing or Perfetto, with a table of the operations that took longest."""

import logging
from pathlib import Path
from typing import Any

import torch

from rayjepa.config import RunConfig
from rayjepa.train.attempts import Attempt

log = logging.getLogger(__name__)

ROWS = 40
"""Operations in the table: what is below takes well under a hundredth of a step."""


class Profile:
    """Traces steps profile.steps of one rank and writes RUN/profile/step-A-B-rank-R.json.gz and .txt.

    Only rank 0 traces: the others do the same work at the same time, and wait for it where tracing slows it. The step
    before is a warm-up, if this attempt takes it. A run that resumes behind A, or ends before B, gives the steps that
    it took in between, and the file's name says which.
    """

    def __init__(self, run: RunConfig, run_dir: Path, attempt: Attempt, *, rank: int, device: torch.device) -> None:
        self.folder, self.rank, self.device = run_dir / "profile", rank, device
        span = run.profile.span if rank == 0 else None
        self._first, self._stop = (max(span[0], attempt.start), span[1]) if span is not None else (0, 0)
        self._begun = attempt.start
        self._profiler: Any = None
        if span is not None and self._first >= self._stop:
            log.info("profile.steps=%s: nothing to trace, this attempt begins at %d", run.profile.steps, attempt.start)

    def close(self) -> None:
        """Write what there is; a trace that cannot be written must not hide how the run ended."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        self._stop = self._begun + 1
        try:
            profiler.stop()
        except (RuntimeError, OSError) as error:
            log.warning("no trace of profile.steps: %s", error)

    def begin(self, step: int) -> None:
        """Told of each step when it begins."""
        if not self._first - 1 <= step <= self._stop or self._first >= self._stop:
            return
        self._begun = step
        if self._profiler is not None:
            self._profiler.step()
            if step == self._stop:  # it has written by now
                self._profiler = None
        elif step < self._stop:
            self._start(step)

    def _start(self, step: int) -> None:
        from torch.profiler import ProfilerAction, ProfilerActivity, profile

        def action(taken: int) -> ProfilerAction:
            now = step + taken
            if now < self._first:
                return ProfilerAction.WARMUP
            if now < self._stop:
                return ProfilerAction.RECORD_AND_SAVE if now == self._stop - 1 else ProfilerAction.RECORD
            return ProfilerAction.NONE

        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
        self._profiler = profile(activities=activities, schedule=action, on_trace_ready=self._write)
        self._profiler.start()

    def _write(self, profiler: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        name = f"step-{self._first}-{self._stop}-rank-{self.rank}"
        half = self.folder / f".{name}.json.gz"
        profiler.export_chrome_trace(str(half))
        by = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=70)
        (self.folder / f"{name}.txt").write_text(f"steps {self._first} to {self._stop - 1}, rank {self.rank}\n{table}")
        half.replace(self.folder / f"{name}.json.gz")

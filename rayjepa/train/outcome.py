"""How a rank's part in a run ended. Free of torch, so that the command line starts fast."""

from dataclasses import dataclass
from pathlib import Path

from rayjepa.config import RunConfig, phases_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the loop came to: `finished` steps, the last checkpoint, and a reason if it stopped before the end."""

    finished: int
    checkpoint: str | None
    reason: str = ""
    """Empty if the run finished or was asked to stop."""


def goes_on(run: RunConfig, run_dir: Path, outcome: Outcome) -> bool:
    """Whether the run's driver begins another attempt: a phase has ended, one follows, and nobody asked to stop."""
    is_between = any(outcome.finished == phase.first for phase in phases_of(run)[1:])
    return is_between and not outcome.reason and not (run_dir / "stop").exists()


class StopRun(RuntimeError):
    """Ends a run with a reason that another start of the worker group would meet again: refused steps, bad data.

    Raised on all ranks at the same step, before anything is changed.
    """

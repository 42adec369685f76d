"""How a rank's part in a run ended. Free of torch, so that the command line starts fast."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the loop came to: `finished` steps, the last checkpoint, and a reason if it stopped before the end."""

    finished: int
    checkpoint: str | None
    reason: str = ""
    """Empty if the run finished or was asked to stop."""


class StopRun(RuntimeError):
    """Ends a run with a reason that another start of the worker group would meet again: refused steps, bad data.

    Raised on all ranks at the same step, before anything is changed.
    """

"""The same lines as TensorBoard events. Imports TensorBoard only when a board is opened."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Board:
    """Writes the numbers of each line as TensorBoard events."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def write(self, line: Mapping[str, Any]) -> None:
        """Add every `group/name` of a line, at its step."""
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float):
                self.writer.add_scalar(name, value, global_step=line["step"], walltime=line["unix_s"])

    def flush(self) -> None:
        """Put what was added on disk; TensorBoard's own thread dies with the process."""
        self.writer.flush()


def open_board(run_dir: Path, *, start: int) -> Board | None:
    """The board in RUN/tensorboard, from step `start` on; None, with a warning, if TensorBoard is not installed.

    Events of an earlier attempt at or after `start` are hidden there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        log.warning("no TensorBoard events: %s; install tensorboard, or set report.tensorboard=false", error)
        return None
    return Board(SummaryWriter(str(run_dir / "tensorboard"), purge_step=start))

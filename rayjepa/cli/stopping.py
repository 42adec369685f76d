"""The first SIGINT or SIGTERM asks for a clean end, by a file that all processes see; the second ends at once."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass
class Stop:
    """Whether somebody has asked."""

    asked: bool = False


@contextmanager
def stop_on_signal(folder: Path, *, says: str, at_once: Callable[[], bool] = lambda: False) -> Iterator[Stop]:
    """Make `folder`/stop at the first signal inside the block, and say what that does.

    While `at_once` holds there is nothing to save yet: KeyboardInterrupt is raised as at any second signal.
    """
    stop = Stop()

    def ask(number: int, _: object) -> None:
        again, stop.asked = stop.asked, True
        if again or at_once():
            raise KeyboardInterrupt
        (folder / "stop").touch()
        log.warning("%s: %s; once more ends at once", signal.Signals(number).name, says)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

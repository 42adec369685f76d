"""A line now and then on how far a long count is."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

EVERY_S = 2.0
"""Seconds between lines."""


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress callback that says how far it is, how fast, and how long the rest will take; and all at the end."""
    began = last = time.monotonic()
    seen = [0]

    def progress(done: int, total: int) -> None:
        nonlocal last
        seen[0] = total
        now = time.monotonic()
        if now - last >= EVERY_S:
            last = now
            rate = done / (now - began)
            left = f", {span((total - done) / rate)} left" if done else ""
            log.info("%s: %d of %d %s, %.3g/s%s", what, done, total, unit, rate, left)

    yield progress
    if seen[0]:
        log.info("%s: %d %s in %.1f s", what, seen[0], unit, time.monotonic() - began)


def span(seconds: float) -> str:
    """A time for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""A video that lies within a larger file, or of which not all is here yet: what FFmpeg reads in place of a file.

The decoder's child imports this: standard library only.
"""

import json
import os
import signal
import socket
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from rayjepa.data.video import BadVideo

BLOCK = 1 << 20
"""Bytes that are asked for at a time, at multiples of as many; at 50 ms an answer, what 160 Mbit/s bring meanwhile."""
LONGEST = 16 << 20
"""Most bytes that are asked for at once, when one block after the other is read."""
MOST_REREAD = 256 << 20
"""Bytes of a file that is read once more to find out whether it or the disk is at fault."""
ANSWER_BYTES = 1 << 16
KEPT = 256 << 20
"""Bytes that were asked for and are kept: of a file that is read from end to end the oldest go again."""
UNTIMED_S = 3600.0
"""What is left of a wall deadline that is not armed."""


class Ranges:
    """Which bytes are here: ranges [first, last) that neither touch nor overlap."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        if first >= last:
            return
        low = bisect_right(self._lasts, first - 1)
        high = bisect_right(self._firsts, last)
        if low < high:
            first, last = min(first, self._firsts[low]), max(last, self._lasts[high - 1])
        self._firsts[low:high] = [first]
        self._lasts[low:high] = [last]

    def remove(self, first: int, last: int) -> None:
        parts = [*self]
        self.clear()
        for a, b in parts:
            self.add(a, min(b, first))
            self.add(max(a, last), b)

    def end_from(self, at: int) -> int:
        """Where the bytes that are here from `at` on end; `at` itself if that byte is not here."""
        k = bisect_right(self._firsts, at) - 1
        return self._lasts[k] if k >= 0 and self._lasts[k] > at else at

    def hole_at(self, at: int, last: int) -> int:
        """Where the hole that `at` lies in ends, at most `last`."""
        k = bisect_right(self._firsts, at)
        return min(last, self._firsts[k]) if k < len(self._firsts) else last

    def clear(self) -> None:
        self._firsts.clear()
        self._lasts.clear()

    def __iter__(self) -> Any:
        return zip(self._firsts, self._lasts, strict=True)


class Paged:
    """A file to read, with what it takes for FFmpeg: `read`, `seek`, `tell`."""

    def __init__(
        self, fd: int, size: int, *, base: int = 0, here: Iterable[tuple[int, int]] | None = None,
        ask: socket.socket | None = None,
    ) -> None:  # fmt: skip
        """`base`: its first byte in that file. `here`: what is there, the rest is asked for; none: all."""
        self.fd, self.size = fd, size
        self._base = base
        self._here = Ranges([(0, size)] if here is None else here)
        self._ask = ask
        self.seen = Ranges()
        """What was read."""
        self._at = 0
        self._asked: list[tuple[int, int]] = []
        self.failure: BadVideo | None = None
        """Why bytes that were wanted are not here: whatever was made of the video since is not to be believed."""

    def read(self, most: int) -> bytes:
        """Up to so many bytes from where it stands; none at its end, or where they cannot be had (`failure`).

        FFmpeg would go on for long after an error, and PyAV print it; after what looks like the end it stops.
        """
        got = self.pread(most, self._at)
        self._at += len(got)
        return got

    def pread(self, most: int, at: int) -> bytes:
        """Bytes from `at` on, at least one if there are any that can be had, wherever it stands."""
        if at >= self.size or most <= 0:
            return b""
        end = self._here.end_from(at)
        if end == at:
            if self.failure is None:
                self._get(at)
            if self.failure is not None:
                return b""
            end = self._here.end_from(at)
        got = os.pread(self.fd, min(most, end - at), self._base + at)
        self.seen.add(at, at + len(got))
        return got

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        match whence:
            case os.SEEK_SET:
                self._at = offset
            case os.SEEK_CUR:
                self._at += offset
            case _:
                self._at = self.size + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def _get(self, at: int) -> None:
        """Have the owner of this process read the block of a byte that is not here, and more of one that goes on."""
        assert self._ask is not None, "a video that is not all here comes with somebody to ask"
        first, length = at - at % BLOCK, BLOCK
        if self._asked and self._asked[-1][1] == first:
            length = min(2 * (self._asked[-1][1] - self._asked[-1][0]), LONGEST)
        first = max(first, self._before(at, first))
        last = self._here.hole_at(at, min(first - first % BLOCK + length, self.size))
        left_s = signal.getitimer(signal.ITIMER_REAL)[0] or UNTIMED_S
        question = {"first": first, "last": last, "left_s": left_s, "drop": self._too_many()}
        self._ask.send(json.dumps(question).encode())
        answer: dict[str, Any] = json.loads(self._ask.recv(ANSWER_BYTES))
        if answer["failure"] is not None:
            self.failure = BadVideo("open", answer["failure"], answer["kind"])
            return
        self._asked.append((first, last))
        self._here.add(first, last)

    def _too_many(self) -> list[tuple[int, int]]:
        """Forget what was asked for first, as far as it is more than is kept."""
        dropped: list[tuple[int, int]] = []
        total = sum(last - first for first, last in self._asked)
        while total > KEPT and len(self._asked) > 1:
            first, last = self._asked.pop(0)
            dropped.append((first, last))
            self._here.remove(first, last)
            total -= last - first
        return dropped

    def _before(self, at: int, first: int) -> int:
        """Where what is here ends that begins before `at`, if it reaches beyond `first`."""
        return max((last for _, last in self._here if first < last <= at), default=first)


def is_readable(file: int | Paged) -> bool:
    """Whether the file can be read after all: FFmpeg speaks of an input error too where Matroska is cut short.

    Of a large file that is not found out, and what FFmpeg says is believed; of one that is read as it is wanted, who
    reads it knows.
    """
    if isinstance(file, Paged):
        return file.failure is None
    fd = file
    size = os.fstat(fd).st_size
    try:
        return size <= MOST_REREAD and all(len(os.pread(fd, 1 << 20, at)) for at in range(0, size, 1 << 20))
    except OSError:
        return False

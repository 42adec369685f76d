"""The bytes of videos, wherever they lie, as what a decoder's child can be handed: an open file.

A file of this machine is opened as it is. A member of a shard is copied into memory without a name, or read in place
where it is large. What lies in remote storage is fetched ahead by threads of their own: whole into memory, or of large
videos the ranges that the clip is likely to need, and others once they are missed. Credentials stay here.
"""

import hashlib
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rayjepa.config import DataConfig
from rayjepa.data.memory import copied, punch, write_at
from rayjepa.data.storage.faults import Changed, NotThere, StorageError
from rayjepa.data.storage.fetching import COPIED, Fetching, changed
from rayjepa.data.storage.paged import BLOCK, LONGEST
from rayjepa.data.storage.wanted import Opened, Wanted
from rayjepa.data.video import BadVideo, Kind, open_file

AHEAD = 8
"""Videos that are fetched at once, or wait here for the child; and twice as many for the calls that follow."""
AHEAD_BYTES = 128 << 20
"""Bytes of them, if they are known and there is more than one."""
SHARE_OF_WALL = 0.8
"""Of what is left of the child's wall deadline a range may take; then the child hears why, and is not ended."""


@dataclass(slots=True)
class Job:
    """What a thread is about to find: a video's bytes, or a range of them (then `opened` stays none)."""

    nbytes: int
    for_later: bool = False
    """The next call will want it."""
    is_done: bool = False
    opened: Opened | None = None
    error: Exception | None = None
    is_dropped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def failure(self) -> BadVideo | None:
        """Why it did not find them."""
        return None if self.error is None else _bad(self.error)


class Reads:
    """Opens videos for one decoder; `expect` may be called by any thread, all else by the decoder's own."""

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Can be read when a thread has found something."""
        weakref.finalize(self, os.close, self.wake)
        self.copied = 0
        """Bytes that were copied out of shards on this machine."""
        self.fetching = Fetching(cfg)
        self._lock = threading.Lock()
        self._jobs: dict[Wanted, Job] = {}
        self._kept: tuple[Wanted, Opened] | None = None

    def close(self) -> None:
        """Let go of what was fetched, and of what is on its way."""
        with self._lock:
            jobs = [*self._jobs.values()]
            self._jobs.clear()
        for job in jobs:
            _drop(job)
        self._keep(None)

    def clear_wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.wake)

    def wait(self, most_s: float) -> float:
        """Until something was fetched, or time is over; seconds of it, if something was on its way."""
        started = time.monotonic()
        with self._lock:
            is_waiting = any(not job.is_done for job in self._jobs.values())
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.poll(most_s * 1e3)
        self.clear_wake()
        return time.monotonic() - started if is_waiting else 0.0

    def expect(self, wanted: Iterable[Wanted]) -> None:
        """Begin to fetch what will be wanted soon; as much as there is room for."""
        for one in wanted:
            if one.is_far:
                self._begin(one, for_later=True)

    def is_here(self, wanted: Wanted) -> bool:
        """Whether it can be opened at once; if not, it is on its way, or waits for room."""
        if not wanted.is_far or (self._kept is not None and self._kept[0] == wanted):
            return True
        with self._lock:
            job = self._jobs.get(wanted)
        if job is None:
            self._begin(wanted, for_later=False)
            return False
        job.for_later = False
        return job.is_done

    def open(self, wanted: Wanted, *, keep: bool = False) -> Opened:
        """Its bytes, which the caller closes; `keep`: another question about the same video may follow.

        Raises:  BadVideo.
        """
        if self._kept is not None:
            if self._kept[0] == wanted:
                kept = self._kept[1]
                return Opened(fd=os.dup(kept.fd), nbytes=kept.nbytes)
            self._keep(None)
        if not wanted.is_far:
            return self._open_near(wanted)
        with self._lock:
            job = self._jobs.pop(wanted)
        if (failure := job.failure) is not None:
            raise failure from job.error
        assert job.opened is not None, "what is opened is here"
        if keep and job.opened.paged is None:
            self._keep((wanted, Opened(fd=os.dup(job.opened.fd), nbytes=job.opened.nbytes)))
        return job.opened

    def hash(self, wanted: Wanted) -> str:
        """Hash of its bytes as the manifest has it, 32 hex digits.

        Raises:  BadVideo.
        """
        digest = hashlib.blake2b(digest_size=16)
        if wanted.is_far and not (self._kept is not None and self._kept[0] == wanted):
            try:
                for part in self.fetching.parts(wanted):
                    digest.update(part)
            except (StorageError, OSError) as error:
                raise _bad(error) from error
            return digest.hexdigest()
        opened = self.open(wanted)
        base = (opened.paged or {}).get("base", 0)
        try:
            for at in range(0, opened.nbytes, COPIED):
                digest.update(os.pread(opened.fd, min(COPIED, opened.nbytes - at), base + at))
        except OSError as error:
            raise BadVideo("open", error.strerror or str(error), "io") from error
        finally:
            opened.close()
        return digest.hexdigest()

    def begin_range(self, opened: Opened, question: dict[str, Any]) -> Job:
        """Fetch the range that the child has asked for, into the memory that it reads."""
        first, last = int(question["first"]), int(question["last"])
        most_s = SHARE_OF_WALL * float(question["left_s"])
        size = (opened.paged or {}).get("size", 0)
        job = Job(last - first)
        if not (opened.remote and 0 <= first < last <= size and last - first <= LONGEST + BLOCK):
            job.error, job.is_done = BadVideo("open", f"bytes {first} to {last} of {size} were asked for"), True
            return job
        fd, remote, base = os.dup(opened.fd), opened.remote, opened.base
        for low, high in question["drop"]:
            punch(fd, int(low), int(high))

        def fetch() -> None:
            try:
                write_at(fd, self.fetching.range_of(remote, base + first, last - first, most_s), first)
            finally:
                os.close(fd)

        self._start(job, fetch, remote.url)
        return job

    # What lies on this machine.

    def _open_near(self, wanted: Wanted) -> Opened:
        place = wanted.place
        fd = open_file(wanted.file)
        try:
            size = os.fstat(fd).st_size
            if place is None:
                return Opened(fd=os.dup(fd), nbytes=size)
            if place.offset is None:
                if size != place.nbytes:
                    raise BadVideo("open", changed(size, place))
                return Opened(fd=os.dup(fd), nbytes=size)
            if size < place.offset + place.nbytes:
                raise BadVideo("open", changed(size, place))
            if place.nbytes > wanted.whole:
                told = {"size": place.nbytes, "base": place.offset, "here": None}
                return Opened(fd=os.dup(fd), nbytes=place.nbytes, paged=told)
            self.copied += place.nbytes
            return Opened(fd=copied(fd, place.offset, place.nbytes), nbytes=place.nbytes)
        except OSError as error:
            raise BadVideo("open", error.strerror or str(error), "io") from error
        finally:
            os.close(fd)

    # What does not.

    def _begin(self, wanted: Wanted, *, for_later: bool) -> None:
        nbytes = wanted.at_first
        with self._lock:
            of_kind = [job.nbytes for job in self._jobs.values() if job.for_later == for_later]
            most = 2 * AHEAD if for_later else AHEAD
            is_full = len(of_kind) >= most or (of_kind and sum(of_kind) + nbytes > AHEAD_BYTES)
            if wanted in self._jobs or is_full:
                return
            job = self._jobs[wanted] = Job(nbytes, for_later)
        self._start(job, lambda: setattr(job, "opened", self.fetching.fetch(wanted)), wanted.file)

    def _start(self, job: Job, work: Callable[[], None], name: str) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  raised again in the decoder's thread
                job.error = error
            with job.lock:
                job.is_done = True
                is_dropped = job.is_dropped
            if is_dropped and job.opened is not None:
                job.opened.close()
            os.eventfd_write(self.wake, 1)

        threading.Thread(target=run, name=f"fetch {name[:80]}", daemon=True).start()

    def _keep(self, kept: tuple[Wanted, Opened] | None) -> None:
        if self._kept is not None:
            self._kept[1].close()
        self._kept = kept


def _drop(job: Job) -> None:
    with job.lock:
        job.is_dropped = True
        is_done = job.is_done
    if is_done and job.opened is not None:
        job.opened.close()


def _bad(error: Exception) -> BadVideo:
    """What is said of a video whose bytes cannot be had; a mistake of ours is raised as it is."""
    if isinstance(error, BadVideo):
        return error
    if not isinstance(error, StorageError | OSError):
        raise error
    kind: Kind = "content" if isinstance(error, NotThere | Changed) else "io"
    return BadVideo("open", str(error), kind)

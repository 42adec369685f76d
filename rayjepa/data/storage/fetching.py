"""How the bytes of a video come from remote storage, or out of a compressed Parquet file: with tries, and counted."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from rayjepa.config import DataConfig
from rayjepa.data.clip import Place
from rayjepa.data.memory import memory_file, write_at
from rayjepa.data.storage.faults import Changed, retried
from rayjepa.data.storage.node_cache import NodeCache
from rayjepa.data.storage.remote import Remote, found, is_remote
from rayjepa.data.storage.rows import Rows
from rayjepa.data.storage.scratch import scratch_folder
from rayjepa.data.storage.spans import merged
from rayjepa.data.storage.wanted import Opened, Wanted

T = TypeVar("T")

COPIED = 8 << 20
"""Bytes that are hashed at a time."""


class Fetching:
    """For any number of threads."""

    def __init__(self, cfg: DataConfig) -> None:
        self.cfg = cfg
        self.requests = 0
        """Requests to remote storage, tried ones counted."""
        self.nbytes = 0
        """Bytes that came from there."""
        self._lock = threading.Lock()
        self._rows = Rows()
        self._cache: NodeCache | None = None
        if cfg.node_cache_gib:
            self._cache = NodeCache(scratch_folder(cfg.scratch) / "videos", int(cfg.node_cache_gib * 2**30))

    def fetch(self, wanted: Wanted) -> Opened:
        """All of it, or of a large one the ranges that are likely to be needed.

        Raises:  StorageError, OSError.
        """
        place = wanted.place or Place(wanted.uri, self._tried(wanted.file, lambda: found_size(wanted.file)))
        if place.cell is not None:
            content = self._tried(wanted.file, lambda: self._cell(place))
            return Opened(fd=memory_file(content), nbytes=len(content))
        if place.nbytes > wanted.whole:
            return self._fetch_parts(wanted, place)
        name = f"{place.file}\0{place.offset}"
        if self._cache is not None:
            fd = self._cache.open(name, place.nbytes)
            if fd is not None:
                return Opened(fd=fd, nbytes=place.nbytes)
        content = self._tried(wanted.file, lambda: self._whole(place))
        if self._cache is not None:
            self._cache.put(name, content)
        return Opened(fd=memory_file(content), nbytes=place.nbytes)

    def _fetch_parts(self, wanted: Wanted, place: Place) -> Opened:
        remote = self._tried(wanted.file, lambda: self._remote(place))
        base = place.offset or 0
        fd = memory_file(b"", place.nbytes)
        opened = Opened(fd=fd, nbytes=place.nbytes, remote=remote, base=base)
        try:
            here = merged((first, min(last, place.nbytes)) for first, last in place.spans)
            at_once([partial(self._fill, fd, remote, base, first, last) for first, last in here])
        except BaseException:
            opened.close()
            raise
        opened.paged = {"size": place.nbytes, "here": here}
        return opened

    def _fill(self, fd: int, remote: Remote, base: int, first: int, last: int) -> None:
        write_at(fd, self.range_of(remote, base + first, last - first), first)

    def _whole(self, place: Place) -> bytes:
        """In one request, beside the one for its size."""
        with self._remote(place) as remote:
            return self._read(remote, place.offset or 0, place.nbytes)

    def _remote(self, place: Place) -> Remote:
        self._count(1, 0)
        remote = Remote(place.file, timeout_s=self.cfg.read_timeout_s)
        end = (place.offset or 0) + place.nbytes
        if remote.nbytes < end or (place.offset is None and remote.nbytes != end):
            remote.close()
            raise Changed(changed(remote.nbytes, place))
        return remote

    def _cell(self, place: Place) -> bytes:
        if is_remote(place.file):
            self._count(1, place.nbytes)
        return self._rows.cell(place, timeout_s=self.cfg.read_timeout_s)

    def range_of(self, remote: Remote, first: int, nbytes: int, most_s: float = math.inf) -> bytes:
        """These bytes of an object, in `most_s` at the most.

        Raises:  StorageError.
        """
        return self._tried(remote.url, lambda: self._read(remote, first, nbytes), most_s)

    def _read(self, remote: Remote, first: int, nbytes: int) -> bytes:
        self._count(1, 0)
        content = remote.read(first, nbytes)
        self._count(0, nbytes)
        return content

    def parts(self, wanted: Wanted) -> Iterable[bytes]:
        """All of it, piece by piece.

        Raises:  StorageError, OSError.
        """
        place = wanted.place or Place(wanted.uri, self._tried(wanted.file, lambda: found_size(wanted.file)))
        if place.cell is not None:
            yield self._tried(wanted.file, lambda: self._cell(place))
            return
        with self._tried(wanted.file, lambda: self._remote(place)) as remote:
            for at in range(0, place.nbytes, COPIED):
                yield self.range_of(remote, (place.offset or 0) + at, min(COPIED, place.nbytes - at))

    def _tried(self, url: str, call: Callable[[], T], most_s: float = math.inf) -> T:
        return retried(call, url=url, tries=self.cfg.read_tries, timeout_s=self.cfg.read_timeout_s, most_s=most_s)

    def _count(self, requests: int, nbytes: int) -> None:
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """All of them, each in a thread of its own; once all have ended, the first error is raised."""
    errors: list[Exception] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def found_size(url: str) -> int:
    """Bytes of a remote object, in one try."""
    return found(url, tries=1).nbytes


def changed(nbytes: int, place: Place) -> str:
    """What is said of a file that has another size than the manifest knows."""
    known = f"{place.nbytes} bytes" if place.offset is None else f"bytes up to {place.offset + place.nbytes}"
    if nbytes == 0:
        return "empty file"  # as for one that no manifest knows: counted as one reason, whatever the sizes were
    return f"changed since it was indexed: {nbytes} bytes, the manifest says {known}; index it again"

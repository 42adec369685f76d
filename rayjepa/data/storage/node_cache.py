"""Remote videos that were read whole, kept on the node's own disk for all of its processes; no server, no daemon.

A file appears by a rename once it is complete. Which were used last is in their times of change; whoever finds that
there are too many removes the oldest, one process at a time.
"""

import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

KEPT = 0.9
"""Share of the limit that is left after some were removed, so that the folder is not listed for each file."""
TURNS, TURN_S = 100, 0.02
"""How often, and how long, a process waits for another that is removing."""
STALE_S = 3600.0
"""Age of an unfinished file whose writer must be dead."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENOENT)


class NodeCache:
    """The videos in `folder`, at most `limit` bytes of them. For any number of threads and processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._written = limit  # unknown at first: what is there is looked at with the first file that is put
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, exist_ok=True)

    def open(self, name: str, nbytes: int) -> int | None:
        """A descriptor of what was put by that name, if it is there with all of its bytes; the caller closes it."""
        path = self._path(name, nbytes)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(fd).st_size != nbytes:  # a file system that lost power may keep the name and not the bytes
            os.close(fd)
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # it has just been removed, and can be read all the same
            os.utime(path)
        return fd

    def put(self, name: str, content: bytes) -> None:
        """Keep it. Where the disk takes no more, there is one warning, and it is not kept."""
        if len(content) > self._limit:
            return
        path = self._path(name, len(content))
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            try:
                unfinished.write_bytes(content)
                os.rename(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
            with self._lock:
                self._written += len(content)
                is_due = self._written > self._limit // 64
            if is_due:
                self._evict()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            _warn(str(self._folder), str(error.strerror))

    def _evict(self) -> None:
        """Remove the least recently used while there is more than the limit; one process at a time, as others wait.

        Not for ever: who has the lock may have been stopped.
        """
        with open(self._folder / ".lock", "w") as lock:
            for _ in range(TURNS):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(TURN_S)
            else:
                return
            with self._lock:
                self._written = 0
            found: list[tuple[float, int, str]] = []
            for entry in os.scandir(self._folder):
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                if not entry.name.startswith("."):
                    found.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name != ".lock" and time.time() - status.st_mtime > STALE_S:
                    Path(entry.path).unlink(missing_ok=True)
            total = sum(size for _, size, _ in found)
            if total <= self._limit:
                return
            for _, size, path in sorted(found):
                Path(path).unlink(missing_ok=True)
                total -= size
                if total <= KEPT * self._limit:
                    return

    def _path(self, name: str, nbytes: int) -> Path:
        return self._folder / hashlib.blake2b(f"{name}\0{nbytes}".encode(), digest_size=16).hexdigest()


@cache
def _warn(folder: str, reason: str) -> None:
    logger.warning(
        "videos are not kept in %s: %s; they are read from storage each time. Make room there, or name another folder "
        "by data.scratch, or set data.node_cache_gib=0",
        folder,
        reason,
    )

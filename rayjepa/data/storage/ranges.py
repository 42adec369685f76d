"""A local or remote file, opened for reading here and there."""

import io
from typing import Any

from rayjepa.data.storage.faults import retried
from rayjepa.data.storage.remote import TIMEOUT_S, TRIES, Remote, is_remote

_AHEAD = 256 << 10
"""Bytes of a remote file that are asked for at once."""


def opened(uri: str, nbytes: int) -> io.BufferedReader:
    """A local or remote file for reading here and there."""
    if not is_remote(uri):
        return open(uri, "rb")
    return io.BufferedReader(_Ranges(uri, nbytes), _AHEAD)


class _Ranges(io.RawIOBase):
    """A remote object of known size; each read is a request."""

    def __init__(self, uri: str, nbytes: int) -> None:
        super().__init__()
        self.remote = retried(lambda: Remote(uri), url=uri, tries=TRIES, timeout_s=TIMEOUT_S)
        self.nbytes, self.at = nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.nbytes}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.nbytes - self.at))
        if not wanted:
            return 0
        data = retried(lambda: self.remote.read(self.at, wanted), url=self.remote.url, tries=TRIES, timeout_s=TIMEOUT_S)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.remote.close()
        super().close()

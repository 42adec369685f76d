"""Objects in remote storage: found, listed and read by URL. S3, Google and files by pyarrow, all others by fsspec.

A URL is taken as it is: what follows the bucket is the object's name, letter by letter, with spaces, # and % in it.
Credentials come from the standard chains of each client: environment, profiles, roles of the node.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import pyarrow.fs as pafs

from rayjepa.data.storage.faults import NotThere, Passing, StorageError, no_bucket, retried, told

TRIES, TIMEOUT_S = 6, 30.0
"""As data.read_tries and data.read_timeout_s have them by default."""
CONNECT_S = 10.0
"""Longest wait for a connection."""
_SCHEME = re.compile("[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One object of a listing."""

    uri: str
    nbytes: int
    modified: str | None
    """What changes when the object does: its time in ns; none if storage does not tell."""


def is_remote(uri: str) -> bool:
    """Whether it is an address, with a scheme, and no path."""
    return _SCHEME.match(uri) is not None


def filesystem_of(url: str, *, timeout_s: float = TIMEOUT_S) -> tuple[Any, str]:
    """The pyarrow filesystem of a URL, and the path in it. Kept for the process, as long as its settings stay.

    Raises:  StorageError if there is none for the scheme.
    """
    scheme, _, rest = url.partition("://")
    match scheme:
        case "file":
            return pafs.LocalFileSystem(), rest
        case "s3":
            settings = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
            return _s3(rest.split("/")[0], timeout_s, settings), rest.rstrip("/")
        case "gs":
            return _gs(timeout_s), rest.rstrip("/")
        case _:
            return _by_fsspec(scheme, url)


@lru_cache(maxsize=16)
def _s3(bucket: str, timeout_s: float, settings: tuple[tuple[str, str], ...]) -> Any:
    """Does what pyarrow does not: heed AWS_ENDPOINT_URL, and find a bucket's region. It makes no tries of its own."""
    known = dict(settings)
    endpoint = known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL")
    region = known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else _region(bucket, timeout_s)
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=min(CONNECT_S, timeout_s),
        request_timeout=max(1.0, timeout_s),  # less than a second is none to it
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _region(bucket: str, timeout_s: float) -> str:
    """Region of a bucket, from AWS."""
    url = f"s3://{bucket}"
    try:
        return retried(lambda: pafs.resolve_s3_region(bucket), url=url, tries=2, timeout_s=timeout_s)
    except Passing as fault:
        raise Passing(f"{fault}; where that look-up is not possible, set AWS_REGION") from fault
    except NotThere as fault:
        raise no_bucket(url) from fault


@lru_cache(maxsize=4)
def _gs(timeout_s: float) -> Any:
    return pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=timeout_s))


def _by_fsspec(scheme: str, url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise StorageError(f"{url}: addresses of {scheme}:// are read by fsspec: pip install fsspec") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise StorageError(f"{url}: {error}; install that package on every node") from error
    except ValueError as error:
        known = ", ".join(sorted({"s3", "gs", "file", *fsspec.available_protocols()}))
        raise StorageError(f"{url}: {error}; known are {known}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def fsspec_of(filesystem: Any) -> Any | None:
    """The fsspec filesystem in a pyarrow one; none: it is pyarrow's own."""
    return filesystem.handler.fs if isinstance(filesystem, pafs.PyFileSystem) else None


def found(url: str, *, tries: int = TRIES, timeout_s: float = TIMEOUT_S) -> Found:
    """The object at `url`.

    Raises:  NotThere if it is none, or a folder; another StorageError if storage does not tell.
    """

    def look() -> Found:
        filesystem, path = filesystem_of(url, timeout_s=timeout_s)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return _found(url, info)
        if info.type == pafs.FileType.Directory:
            raise NotThere(f"{url}: a folder, not an object; name the objects in it, or index the folder")
        raise missing(url, filesystem)

    return retried(look, url=url, tries=tries, timeout_s=timeout_s)


def found_below(url: str, *, tries: int = TRIES, timeout_s: float = TIMEOUT_S) -> Iterator[Found]:
    """Every object below a bucket or folder, sorted by its address.

    Raises:  NotThere if there is no such bucket or folder; another StorageError if storage does not tell.
    """
    whole_s = 40 * timeout_s  # a listing is many requests, of which the client keeps the time

    def walk() -> list[Any]:
        filesystem, path = filesystem_of(url, timeout_s=timeout_s)
        try:
            return filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        except FileNotFoundError:
            raise missing(url, filesystem) from None

    infos = retried(walk, url=url, tries=tries, timeout_s=whole_s)
    _, path = filesystem_of(url, timeout_s=timeout_s)
    above = url.rstrip("/")
    for info in sorted((info for info in infos if info.type == pafs.FileType.File), key=lambda info: info.path):
        name = info.path[len(path.rstrip("/")) :].lstrip("/")
        yield _found(f"{above}/{name}", info)


def _found(uri: str, info: Any) -> Found:
    return Found(uri=uri, nbytes=int(info.size or 0), modified=None if info.mtime is None else str(info.mtime_ns))


def missing(url: str, filesystem: Any) -> NotThere:
    """Whether it is the object that is not there, or the whole bucket."""
    bucket = url.partition("://")[2].split("/")[0]
    if url.startswith(("s3://", "gs://")) and filesystem.get_file_info(bucket).type == pafs.FileType.NotFound:
        return no_bucket(url)
    return NotThere(f"{url}: no such object; it was deleted or renamed, or the address is wrong")


def read_bytes(
    url: str, offset: int = 0, nbytes: int | None = None, *, tries: int = TRIES, timeout_s: float = TIMEOUT_S
) -> bytes:
    """Bytes of an object from `offset` on: `nbytes` of them, or all.

    Raises:  StorageError; a Passing one has been tried `tries` times.
    """

    def read() -> bytes:
        with Remote(url, timeout_s=timeout_s) as remote:
            return remote.read(offset, remote.nbytes - offset if nbytes is None else nbytes)

    return retried(read, url=url, tries=tries, timeout_s=timeout_s)


class Remote:
    """An object that is open for reading, by any number of threads. What goes wrong is raised as it comes."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """One request, for its size.

        Raises:  StorageError.
        """
        self.url = url
        filesystem, self._path = filesystem_of(url, timeout_s=timeout_s)
        self._fsspec = fsspec_of(filesystem)
        try:
            if self._fsspec is None:
                self._file = filesystem.open_input_file(self._path)
                self.nbytes: int = self._file.size()
            else:
                self.nbytes = int(self._fsspec.info(self._path)["size"])
        except FileNotFoundError as error:
            if isinstance(error.__cause__, Exception):  # fsspec's client of HTTP says this of any refusal
                raise told(error.__cause__, url) from error
            raise missing(url, filesystem) from None
        except Exception as error:  # fsspec's clients have exceptions of their own, each another's
            raise told(error, url) from error

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly these bytes, by one request.

        Raises:  StorageError; Passing also if fewer came.
        """
        try:
            if self._fsspec is None:
                got = self._file.read_at(nbytes, offset)
            else:
                got = self._fsspec.cat_file(self._path, start=offset, end=offset + nbytes)
        except Exception as error:  # as above
            raise told(error, self.url) from error
        if len(got) != nbytes:
            raise Passing(f"{self.url}: {len(got)} bytes came of {nbytes} from byte {offset} on; it was cut off")
        return got

    def close(self) -> None:
        if self._fsspec is None:
            self._file.close()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

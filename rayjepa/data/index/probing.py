"""What each file of a listing is: looked at in parallel, in whatever order."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, assert_never, runtime_checkable

import pyarrow as pa

from rayjepa.config import DataConfig
from rayjepa.data.clip import Failure, Place
from rayjepa.data.columns import SCHEMA
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.shards import members
from rayjepa.data.storage.faults import StorageError
from rayjepa.data.storage.remote import found, is_remote
from rayjepa.data.video import Probe

Verify = Literal["quick", "full"]
"""`quick`: every packet is read and one frame decoded, in milliseconds; `full`: all frames are decoded once."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""

AT_ONCE = 512
"""Rows in one table of the answer, at most."""
_WAITING = 4
"""Threads for each CPU where storage is remote: they wait for it, most of the time."""
_MOST_THREADS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is to be found out of each file."""

    cfg: DataConfig
    verify: Verify = "quick"
    hashes: bool = True
    """Whether all of its bytes are read, to know those that are there twice."""


@runtime_checkable
class Spread(Protocol):
    """Who looks at the files: threads here, or a cluster."""

    def members(self, shards: pa.Table) -> Iterator[pa.Table]:
        """What `shards.members` says of each shard; columns uri, bytes, modified, of files, come in."""
        ...

    def probed(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Rows of LISTED as rows of the manifest, in any order and in small tables; a bad file is a bad row."""
        ...


class Threads:
    """Looks at files from this process; each thread owns a decoder, whose child process does the work."""

    def __init__(self, look: Look, *, processes: int | None = None) -> None:
        self.look, self.processes = look, processes

    def members(self, shards: pa.Table) -> Iterator[pa.Table]:
        with ThreadPoolExecutor(self._threads(shards), thread_name_prefix="shard") as pool:
            yield from pool.map(members, *(shards.column(n).to_pylist() for n in ("uri", "bytes", "modified")))

    def probed(self, rows: pa.Table) -> Iterator[pa.Table]:
        done: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
        taken, stopped = iter(_rows_of(rows)), threading.Event()
        lock = threading.Lock()

        def work(decoder: Decoder) -> None:
            try:
                while not stopped.is_set():
                    with lock:
                        row = next(taken, None)
                    if row is None:
                        return
                    done.put(described(row, decoder, self.look))
            except Exception as error:  # noqa: BLE001  raised again below, in the caller's thread
                done.put(error)

        with ExitStack() as stack:
            count = min(self._threads(rows), len(rows))
            decoders = [stack.enter_context(Decoder(self.look.cfg)) for _ in range(count)]
            threads = [threading.Thread(target=work, args=(d,), name="probe", daemon=True) for d in decoders]
            for thread in threads:
                stack.callback(thread.join)
            stack.callback(stopped.set)  # then they are waited for, then their decoders close
            for thread in threads:
                thread.start()
            left = len(rows)
            while left:
                ready = _ready(done)
                left -= len(ready)
                yield pa.Table.from_pylist(ready, schema=SCHEMA)

    def _threads(self, rows: pa.Table) -> int:
        if self.processes is not None:
            return self.processes
        cpus = len(os.sched_getaffinity(0))
        waits = is_remote(rows.column("uri")[0].as_py())
        return min(cpus * _WAITING, _MOST_THREADS) if waits else cpus


def _rows_of(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries, few of them at a time."""
    for batch in rows.to_batches(max_chunksize=AT_ONCE):
        yield from batch.to_pylist()


def _ready(done: "SimpleQueue[dict[str, Any] | Exception]") -> list[dict[str, Any]]:
    """The next row, and those that wait behind it."""
    ready: list[dict[str, Any]] = []
    try:
        while len(ready) < AT_ONCE:
            row = done.get(block=not ready)
            if isinstance(row, Exception):
                raise row
            ready.append(row)
    except Empty:
        pass
    return ready


def described(row: dict[str, Any], decoder: Decoder, look: Look) -> dict[str, Any]:
    """A row of a listing as one of the manifest.

    A file that could not be read, or not in time, has no `modified`: the next index tries it again.
    """
    known = {name: row[name] for name in ("uri", "shard", "offset", "cell", "bytes", "modified")}
    place: Place | None = None
    if row["shard"] is not None or is_remote(row["uri"]):
        missing = _sized(known)
        place = Place(row["shard"] or row["uri"], known["bytes"] or 0, row["offset"], row["cell"])
    else:
        missing = _looked_at(known)
    if missing is not None:
        return {**known, **_bad(missing), "modified": None}
    if not known["bytes"]:
        return {**known, **_bad("empty file")}
    probe = _seen(known["uri"], place, decoder, look.verify)
    if isinstance(probe, Failure):
        return {**known, **_failed(probe)}
    if not probe.duration_s > 0 or not probe.fps > 0:
        return {**known, **_bad(f"no length: {probe.duration_s} s at {probe.fps} frames per second")}
    if look.hashes:
        digest = decoder.hash(known["uri"], place)
        if isinstance(digest, Failure):
            return {**known, **_failed(digest)}
        known["hash"] = digest
    return {**known, **columns_of(probe)}


def _looked_at(known: dict[str, Any]) -> str | None:
    """Note size and time of a local file; return why it cannot be opened."""
    try:
        status = os.stat(known["uri"])
    except FileNotFoundError:
        return "file not found"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    known["bytes"], known["modified"] = status.st_size, str(status.st_mtime_ns)
    return None


def _sized(known: dict[str, Any]) -> str | None:
    """Note size and time of an object that the listing did not find; return why it cannot be read."""
    if known["bytes"] is not None:
        return None
    try:
        one = found(known["uri"])
    except StorageError as error:
        return _reason(error, known["uri"])
    known["bytes"], known["modified"] = one.nbytes, one.modified
    return None


def columns_of(probe: Probe) -> dict[str, Any]:
    """What the manifest says of a video that can be used."""
    columns = {name: getattr(probe, name) for name in SCHEMA.names if hasattr(probe, name)}
    numerator, denominator = probe.time_base
    return {**columns, "time_base_num": numerator, "time_base_den": denominator, "status": "ok"}


def _seen(uri: str, place: Place | None, decoder: Decoder, verify: Verify) -> Probe | Failure:
    match verify:
        case "quick":
            return decoder.probe(uri, place)
        case "full":
            return decoder.verify(uri, place)
        case _ as unreachable:
            assert_never(unreachable)


def _reason(error: Exception, uri: str) -> str:
    """Why, without the address, which the row has."""
    return str(getattr(error, "strerror", None) or error).removeprefix(f"{uri}: ")


def _failed(failure: Failure) -> dict[str, Any]:
    again: dict[str, Any] = {"modified": None} if failure.kind in ("io", "deadline") else {}
    return {**_bad(failure.reason), **again}


def _bad(reason: str) -> dict[str, Any]:
    return {"status": "bad", "reason": reason}

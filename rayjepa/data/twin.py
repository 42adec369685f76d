"""The manifest's twin: what tape and decoders read of it, in files that all processes of a node map into memory.

It is made once on each node, in its scratch folder, under the fingerprint of the manifest. A process that draws from
ten million rows so holds no more memory of its own than one that draws from ten.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from rayjepa.data import manifest
from rayjepa.data.choice import CODED, READ, Choice, Rows, choose
from rayjepa.data.columns import SCHEMA, checked
from rayjepa.data.fingerprint import fingerprint
from rayjepa.data.index.repeats import Repeats
from rayjepa.data.lookup import COLUMNS, Entry, Lookup
from rayjepa.data.manifest import Manifest
from rayjepa.data.storage.scratch import scratch_folder

log = logging.getLogger(__name__)

VERSION = 1
"""Of the twin's files; another makes a twin of its own."""
UNUSED_DAYS = 7.0
"""A twin that no process has opened for so long is removed when another is made."""
MOST_GIB = 64.0
"""Size of all twins above which those that were opened longest ago are removed when another is made."""
SLOW_S = 2.0
"""A twin that takes longer to make is worth a line."""


class Twin:
    """A manifest's rows in memory-mapped files; see `opened`."""

    def __init__(self, path: Path, folder: Path, known: manifest.Head) -> None:
        assert known.fingerprint is not None, "a manifest without one has no twin"
        self.path, self.folder, self.known = path, folder, known
        self.fingerprint: str = known.fingerprint

    @property
    def repeats(self) -> Repeats:
        """Paths that come more than once, as they were counted when the manifest was written."""
        return self.known.repeats

    def summary(self) -> str:
        """Lines for a person, as they were when the manifest was written."""
        return self.known.summary

    def __len__(self) -> int:
        return self.known.rows

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        return _reopened, (self.path, str(self.folder.parent.parent))

    def map(self) -> None:
        """Open the files, so that rows can be looked up."""
        with pa.memory_map(str(self.folder / "columns.arrow")) as file, pyarrow.ipc.open_file(file) as reader:
            self._lookup = Lookup(reader.get_batch(i) for i in range(reader.num_record_batches))

    def write(self) -> None:
        """Write COLUMNS of all rows as an Arrow file that can be mapped: not compressed, in pieces of a row group."""
        checked(pyarrow.parquet.read_schema(self.path).empty_table())
        schema = pa.schema([SCHEMA.field(name) for name in COLUMNS])
        with pa.OSFile(str(self.folder / "columns.arrow"), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
            for table in self.read(COLUMNS):
                writer.write_table(table.select(list(COLUMNS)).replace_schema_metadata())

    def entry(self, row: int) -> Entry:
        """What the tape needs to know of one row."""
        return self._lookup[row]

    def chosen(self, choice: Choice) -> Rows:
        """The rows that a stream draws from, mapped; the first process that asks finds them for all of the node."""
        folder = self.folder / f"rows-{choice.name}"
        if not folder.is_dir():
            with _locked(self.folder):
                if not folder.is_dir():
                    with _whole(folder) as half:
                        _write_rows(choose(self.read(READ, CODED), choice), half)
        names: list[str | None] = json.loads((folder / "names.json").read_text())
        return {name: np.load(folder / f"{number}.npy", mmap_mode="r") for number, name in enumerate(names)}

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of all rows in order, one row group at a time: from the twin's file, or else the manifest's."""
        if not set(columns) <= set(COLUMNS):
            yield from self.read(columns)
            return
        # Read, not mapped: a scan of all rows would map all of them into this process.
        fields = pyarrow.ipc.IpcReadOptions(included_fields=[COLUMNS.index(name) for name in columns])
        with (
            pa.OSFile(str(self.folder / "columns.arrow"), "rb") as file,
            pyarrow.ipc.open_file(file, options=fields) as reader,
        ):
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)]).select(list(columns))

    def read(self, columns: Sequence[str], coded: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The same from the manifest's own file; those that are `coded` as numbers of their few different texts."""
        with pyarrow.parquet.ParquetFile(self.path, read_dictionary=list(coded), pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns)).combine_chunks()


def opened(path: str | Path, *, scratch: str | None) -> Twin | Manifest:
    """The manifest in the Parquet file `path`, as the twin in this node's scratch folder, which is made if need be.

    One process makes it, and those that come meanwhile wait. One from an older version, which has no fingerprint by
    which a twin could be found, is read into memory.
    Raises:  ValueError if it is no manifest that can be used, or its rows are not those that it was written with.
             RuntimeError if the scratch folder cannot be used or has no room.
    """
    path = Path(path).absolute()
    known = manifest.head(path)
    if known.fingerprint is None:
        return manifest.read(path)
    home = scratch_folder(scratch) / "twins"
    home.mkdir(mode=0o700, exist_ok=True)
    folder = home / f"{known.fingerprint}-{VERSION}"
    if twin := _mapped(path, folder, known):
        return twin
    with _locked(folder):
        if not _is_whole(folder):  # another process may have been faster
            _make_room(home, keep=folder)
            _make(Twin(path, folder, known))
    twin = _mapped(path, folder, known)
    assert twin is not None, "it was just made, and is too young to be removed"
    return twin


def _mapped(path: Path, folder: Path, known: manifest.Head) -> Twin | None:
    """The twin, if it is there; nobody removes it meanwhile."""
    with _locked(folder, fcntl.LOCK_SH):
        if not _is_whole(folder):
            return None
        os.utime(folder)
        twin = Twin(path, folder, known)
        twin.map()
        return twin


def put(videos: Twin | Manifest, path: Path) -> None:
    """Write a manifest to `path`, whole or not at all; one that has a twin is a copy of its file.

    Raises:  OSError that names the file and the cause, if it cannot be written.
    """
    if isinstance(videos, Manifest):
        manifest.write(videos, path)
    elif videos.path != path.absolute():
        manifest.copy(videos.path, path)


def in_memory(videos: Twin | Manifest) -> Manifest:
    """All columns and rows, in this process's memory."""
    return videos if isinstance(videos, Manifest) else manifest.read(videos.path)


def _reopened(path: Path, scratch: str) -> Twin | Manifest:
    return opened(path, scratch=scratch)


def _make(twin: Twin) -> None:
    """Write the twin's files, and check that its rows are those of the fingerprint."""
    began = time.monotonic()
    try:
        with _whole(twin.folder) as half:
            with ThreadPoolExecutor(1) as beside:
                found = beside.submit(fingerprint, twin.read, len(twin))
                Twin(twin.path, half, twin.known).write()
            if found.result() != twin.fingerprint:
                raise ValueError("its rows are not those of its fingerprint: something else than rayjepa changed it")
            (half / "whole.json").write_text(json.dumps(_birth(half)))
    except ValueError as error:
        raise ValueError(f"{twin.path} is not a usable manifest: {error}; make it again with `rayjepa index`") from None
    except OSError as error:
        raise RuntimeError(
            f"cannot write the twin of {twin.path} to {twin.folder}: {error.strerror or error}; name a folder with "
            "room on each node's disk by data.scratch"
        ) from error
    pa.default_memory_pool().release_unused()
    if (took := time.monotonic() - began) > SLOW_S:
        log.info(
            "manifest of %s rows mapped for this node's processes in %.1f s: %s", f"{len(twin):,}", took, twin.folder
        )


def _write_rows(rows: Rows, folder: Path) -> None:
    (folder / "names.json").write_text(json.dumps(list(rows)))
    for number, found in enumerate(rows.values()):
        np.save(folder / f"{number}.npy", found)


@contextlib.contextmanager
def _locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Alone with a twin among the node's processes; the kernel gives the lock back when its holder dies.

    Raises:  BlockingIOError if another process has it, and `how` is not to wait.
    """
    handle = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A hidden folder that gets its name once it is filled; the caller holds the lock, so what is there is a ruin."""
    half = folder.with_name(f".{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    try:
        yield half
        shutil.rmtree(folder, ignore_errors=True)
        half.rename(folder)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def _birth(folder: Path) -> dict[str, Any]:
    """What a whole twin says of itself: its size, and since when this machine runs.

    It is not synced to disk, which would take longer than to make it: after a crash of the machine it is made again.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"bytes": (folder / "columns.arrow").stat().st_size, "boot": boot.read_text() if boot.exists() else ""}


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / "whole.json").read_text()) == _birth(folder)
    except (OSError, ValueError):
        return False


def _make_room(home: Path, *, keep: Path) -> None:
    """Remove twins that are old, and above MOST_GIB those that were opened longest ago.

    A process that has one mapped keeps what it mapped; one that is just being made or opened stays.
    """
    twins = [folder for folder in home.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    ages = {folder: time.time() - folder.stat().st_mtime for folder in twins if folder != keep}
    room = MOST_GIB * 2**30
    for folder, age_s in sorted(ages.items(), key=lambda item: item[1]):
        room -= sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if age_s >= UNUSED_DAYS * 86400 or room < 0:
            with contextlib.suppress(BlockingIOError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(folder, ignore_errors=True)

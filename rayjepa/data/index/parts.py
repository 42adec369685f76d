"""What an index has found so far, beside the manifest that it will be: a kill loses what no part holds yet."""

import fcntl
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet

from rayjepa.data.columns import SCHEMA

ROWS = 8192
"""Rows of a part."""
LONGEST_S = 20.0
"""Seconds after which a part is written with fewer."""
_ENDING = ".parquet"


class Parts:
    """A hidden folder of Parquet files, each whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[pa.Table] = []
        self._since = time.monotonic()

    def rows(self) -> pa.Table:
        """What earlier calls and this one have found; of a video that was looked at twice, the later row first."""
        paths = sorted(self.folder.glob(f"*{_ENDING}"), reverse=True)
        tables = [SCHEMA.empty_table()]
        for path in paths:
            try:
                with pyarrow.parquet.ParquetFile(path) as file:
                    table = file.read()
            except (pa.ArrowException, OSError) as error:
                warnings.warn(f"{path} cannot be read and counts for nothing: {error}", stacklevel=3)
                continue
            if table.schema.remove_metadata().equals(SCHEMA):  # else it is of an older version
                tables.append(table)
        return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])

    def add(self, table: pa.Table) -> None:
        """Take note of some rows; from time to time what is pending becomes a part."""
        self._pending.append(table)
        late = time.monotonic() - self._since > LONGEST_S
        if late or sum(len(pending) for pending in self._pending) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Make what is pending a part.

        Raises:  OSError that names the folder, if it takes no more.
        """
        if self._pending:
            name = f"{time.time_ns():020d}{_ENDING}"  # so that a later part has a later name
            draft = self.folder / f".{uuid.uuid4().hex}"
            try:
                with draft.open("wb") as file:
                    pyarrow.parquet.write_table(pa.concat_tables(self._pending), file, compression="zstd")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, self.folder / name)
            except OSError as error:
                draft.unlink(missing_ok=True)
                raise OSError(
                    f"cannot write {self.folder / name}: {error.strerror or error}; make room and run the same command "
                    "again: what is finished stays"
                ) from error
        self._pending = []
        self._since = time.monotonic()

    def forget(self) -> None:
        """Remove what earlier calls have found."""
        for path in self.folder.glob(f"*{_ENDING}"):
            path.unlink()

    def clear(self) -> None:
        """Remove the folder: the manifest is written."""
        self._pending = []
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def parts_of(out: Path) -> Iterator[Parts]:
    """The parts of the manifest that is to be `out`, which no other process writes to meanwhile.

    What is pending is written when the block ends, in whatever way.
    Raises:  RuntimeError if another process makes this manifest; OSError if the folder cannot be written.
    """
    folder = out.parent / f".{out.name}.parts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise OSError(
            f"cannot write {folder}: {error.strerror}; name an output (-o) in a folder that can be written"
        ) from error
    with lock:
        _take(lock, out)
        parts = Parts(folder)
        try:
            yield parts
        finally:
            if folder.is_dir():
                parts.flush()
                if not any(folder.glob(f"*{_ENDING}")):
                    shutil.rmtree(folder, ignore_errors=True)


def _take(lock: TextIO, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"another `rayjepa index` makes {out}; wait for it, or stop it") from None

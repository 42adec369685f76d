"""The manifest: one Parquet row for each video, made once, read by the tape."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Bool, Float64, Int64

from rayjepa.config import DataConfig
from rayjepa.data.choice import Choice, Rows, choose, images
from rayjepa.data.columns import SCHEMA, checked, equals
from rayjepa.data.fingerprint import fingerprint
from rayjepa.data.index.repeats import Repeats, repeats
from rayjepa.data.index.summary import summary
from rayjepa.data.lookup import Entry, Lookup

VERSION = 4
"""Format of the file; a change of column or meaning raises it. OLD_VERSIONS are read too."""

OLD_VERSIONS = ("2", "3")
"""Without the columns that came later; in 3, `source` is what `stream` is now."""

GROUP = 1 << 17
"""Rows of a row group: some tens of MB in memory, so that a large manifest can be read piece by piece."""

_METADATA = b"rayjepa.manifest"
_FINGERPRINT = b"rayjepa.fingerprint"
_SUMMARY = b"rayjepa.summary"
_REPEATS = b"rayjepa.repeats"


@dataclass(frozen=True)
class Manifest:
    """Videos and images and what is known of them, as an Arrow table: `SCHEMA`, then label columns `label_*`.

    Rows stay in Arrow, about 0.2 kB each, so ten million fit in memory; a pickle carries the table alone.
    Raises:  ValueError if a column is missing, extra, of another type, or says what a manifest cannot say.
    """

    table: pa.Table

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", checked(self.table))

    def __len__(self) -> int:
        return self.table.num_rows

    def __reduce__(self) -> tuple[type["Manifest"], tuple[pa.Table]]:
        return Manifest, (self.table,)

    def column(self, name: str) -> pa.Array:
        """One column as a single Arrow array."""
        return self.table.column(name).chunk(0)

    def uri(self, row: int) -> str:
        """Absolute path of the video in row `row`."""
        return self.column("uri")[row].as_py()

    @cached_property
    def duration_s(self) -> Float64[np.ndarray, " n"]:
        """Duration of each video in seconds; NaN for bad rows."""
        return self.column("duration_s").to_numpy(zero_copy_only=False)

    @cached_property
    def fps(self) -> Float64[np.ndarray, " n"]:
        """Average frame rate of each video; NaN for bad rows."""
        return self.column("fps").to_numpy(zero_copy_only=False)

    @cached_property
    def linear(self) -> Bool[np.ndarray, " n"]:
        """Which videos are read from their first packet on, since seeks in them are not exact."""
        return equals(self.column("seek"), "linear")

    @cached_property
    def usable(self) -> Bool[np.ndarray, " n"]:
        """Which rows passed the probe."""
        return equals(self.column("status"), "ok")

    @cached_property
    def images(self) -> Bool[np.ndarray, " n"]:
        """Which rows are images, from which no clip of several frames is drawn."""
        return images(self.column("container"))

    @cached_property
    def train_rows(self) -> Int64[np.ndarray, " m"]:
        """Usable rows that the tape draws from, rising."""
        return np.flatnonzero(self.usable & equals(self.column("split"), "train"))

    @cached_property
    def holdout_rows(self) -> Int64[np.ndarray, " m"]:
        """Usable rows that are never trained, rising."""
        return np.flatnonzero(self.usable & equals(self.column("split"), "holdout"))

    @property
    def fingerprint(self) -> str:
        """32 hex digits over what decides the tape: uri, bytes, duration, frames, split, status, stream, source."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.scan, len(self))

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup([self.table])

    @cached_property
    def repeats(self) -> Repeats:
        """Paths that come more than once."""
        return repeats(self)

    def entry(self, row: int) -> Entry:
        """What the tape needs to know of one row."""
        return self._lookup[row]

    def chosen(self, choice: Choice) -> Rows:
        """The rows that a stream draws from."""
        return choose([self.table], choice)

    def scan(self, columns: Sequence[str]) -> Iterable[pa.Table]:
        """These columns of all rows, in one piece."""
        return [self.table.select(list(columns))]

    def summary(self, cfg: DataConfig | None = None) -> str:
        """Lines for a person: what there is, what is bad and why; with `cfg`, the short videos too."""
        return summary(self.table, cfg)


def span_s(cfg: DataConfig) -> float:
    """Seconds from a clip's first frame to its last; a video that is shorter has to repeat its last frame."""
    return (cfg.frames - 1) / cfg.fps


def write(manifest: Manifest, path: str | Path) -> None:
    """Write `manifest` as Parquet; the file is whole or not there.

    Raises:  OSError that names the file and the cause, if it cannot be written.
    """
    facts = {
        _METADATA: b"%d" % VERSION,
        _FINGERPRINT: manifest.fingerprint.encode(),
        _SUMMARY: manifest.summary().encode(),
        _REPEATS: json.dumps(asdict(manifest.repeats)).encode(),
    }
    table = manifest.table.replace_schema_metadata(facts)
    _put(Path(path), lambda half: pyarrow.parquet.write_table(table, half, compression="zstd", row_group_size=GROUP))


def copy(source: Path, path: Path) -> None:
    """Write a manifest's file once more; the copy is whole or not there.

    Raises:  OSError that names the file and the cause, if it cannot be written.
    """
    _put(path, lambda half: shutil.copyfile(source, half))


def _put(path: Path, write_to: Callable[[Path], object]) -> None:
    """What `write_to` writes, under its name once it is whole."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"cannot write manifest {path}: {error}; name a file in a folder that can be written") from error


class Head(NamedTuple):
    """What the file of a manifest says before its rows are read."""

    version: str
    """`none`: it is Parquet, but says nothing of a manifest."""
    rows: int
    fingerprint: str | None
    """None: it was written by an older version, or somebody else."""
    summary: str
    repeats: Repeats


def head(path: str | Path) -> Head:
    """What the file of a manifest says of itself; its rows are not read.

    Raises:  ValueError if there is none, or it is of a version that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest: {path} is not a file; make one with `rayjepa index`")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return _head(file)
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise _unusable(path, error) from None


def _head(file: Any) -> Head:
    facts = file.schema_arrow.metadata or {}
    version = facts.get(_METADATA, b"none").decode(errors="replace")
    if version not in (*OLD_VERSIONS, str(VERSION), "none"):
        raise ValueError(f"format version {version}, and this code reads {', '.join(OLD_VERSIONS)} and {VERSION}")
    known = facts.get(_FINGERPRINT) if version == str(VERSION) else None
    rows = file.metadata.num_rows
    twice = Repeats(**json.loads(facts.get(_REPEATS, b"{}")))
    return Head(version, rows, known.decode() if known else None, facts.get(_SUMMARY, b"").decode(), twice)


def _unusable(path: Path, error: ValueError) -> ValueError:
    return ValueError(f"{path} is not a usable manifest: {error}; make it again with `rayjepa index`")


def read(path: str | Path) -> Manifest:
    """The manifest in the Parquet file `path`, all of it in this process's memory.

    Raises:  ValueError if there is none, or it is of another version or has other columns.
    """
    version = head(path).version
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
            if version in OLD_VERSIONS:
                table = _renewed(table, version)
            manifest = Manifest(table)  # first, so that foreign Parquet is told which columns it lacks
            if version == "none":
                raise ValueError("right columns, but no format version")
            return manifest
    except ValueError as error:
        raise _unusable(Path(path), error) from None


def _renewed(table: pa.Table, version: str) -> pa.Table:
    """A table of an older format with the columns of this one; what it did not know is null."""
    if version == "3":
        table = table.rename_columns(["stream" if name == "source" else name for name in table.column_names])
    for field in SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table

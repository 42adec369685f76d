"""Videos in the cells of a Parquet file: where the bytes of each lie, or by which row they are found."""

import mmap
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from rayjepa.data.index.listed import rows_of
from rayjepa.data.index.lists import is_text, labels_of
from rayjepa.data.index.paths import below
from rayjepa.data.storage.ranges import opened
from rayjepa.data.storage.remote import is_remote, read_bytes

BYTES = ("video", "bytes", "mp4", "data", "content", "image")
"""Names of the column that holds the videos, if there are several of bytes; the first that is there counts."""
NO_BYTES = "no column holds bytes; left out"
_VALUES = 16
"""Videos that are in memory at once."""
_NEEDLE = 64
"""First bytes of a value that it is looked for by; then all are compared."""


def in_parquet(shard: str, nbytes: int, complaints: list[str]) -> pa.Table | None:
    parts: list[pa.Table] = []
    column: str | None = None
    try:
        with opened(shard, nbytes) as file, pyarrow.parquet.ParquetFile(file, pre_buffer=False) as parquet:
            column = bytes_column(parquet.schema_arrow)
            if column is None:
                complaints.append(f"{shard}: {NO_BYTES}")
                return None
            first = 0
            for group in range(parquet.num_row_groups):
                parts.append(_group(shard, parquet, group, column, first))
                first += parquet.metadata.row_group(group).num_rows
    except (pa.ArrowException, ValueError) as error:
        done = sum(len(part) for part in parts)
        complaints.append(
            f"{shard} cannot be read after {done} video(s): {str(error).splitlines()[0]}; copy or make it again"
        )
    if not parts:
        return None
    table = pa.concat_tables(parts)
    if empty := table.column("bytes").null_count:
        complaints.append(f"{shard}: {empty} of {len(table)} cells of column {column} hold no bytes and were left out")
        table = table.filter(table.column("bytes").is_valid())
    return table


def _group(shard: str, parquet: Any, group: int, column: str, first: int) -> pa.Table:
    """The rows of one row group; values that lie in the file as they are have an offset, others a cell."""
    sizes, offsets = _values(shard, parquet, group, column)
    cells = pa.array([f"{column}/{first + k}" for k in range(len(sizes))], pa.large_string())
    source, labels = labels_of(parquet.read_row_group(group, columns=_scalars(parquet.schema_arrow)))
    table = rows_of(
        below(shard, cells, "#"),
        bytes=pa.array(sizes, mask=sizes < 0),
        offset=pa.array(offsets, mask=offsets < 0),
        cell=cells if (offsets < 0).any() else None,
        source=source,
    )
    for name, values in labels.items():
        table = table.append_column(name, values)
    return table


def _scalars(schema: pa.Schema) -> list[str]:
    """Columns that can be labels, and `source`."""
    kinds = ((field.name, field.type) for field in schema)
    return [name for name, kind in kinds if is_text(kind) or not (pa.types.is_nested(kind) or _is_bytes(kind))]


def _values(shard: str, parquet: Any, group: int, column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes of a row group's values, -1 for none, and where each lies in the file; all -1 if not as they are."""
    facts = parquet.metadata.row_group(group)
    chunk = next(c for c in map(facts.column, range(facts.num_columns)) if c.path_in_schema == column)
    sizes = np.full(facts.num_rows, -1, np.int64)
    offsets = np.full(facts.num_rows, -1, np.int64)
    start = min(p for p in (chunk.dictionary_page_offset, chunk.data_page_offset) if p is not None)
    plain = chunk.compression == "UNCOMPRESSED"
    with _Raw(shard, start, chunk.total_compressed_size if plain else 0) as raw:
        at = 0
        for row, value in enumerate(_cells(parquet, group, column)):
            if value is None:
                continue
            sizes[row] = len(value)
            found = _find(raw, value, at) if plain else -1
            plain = found >= 0
            offsets[row] = start + found
            at = found + len(value)
    if not plain:
        offsets[:] = -1
    return sizes, offsets


def _cells(parquet: Any, group: int, column: str) -> Iterator[pa.Buffer | None]:
    for batch in parquet.iter_batches(batch_size=_VALUES, row_groups=[group], columns=[column]):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = values.flatten()[0]
        yield from (value.as_buffer() for value in values)


def _find(raw: "_Raw", value: pa.Buffer, at: int) -> int:
    """Where the value's bytes begin, after its length as PLAIN writes it; -1: not there."""
    data = memoryview(value)
    needle = struct.pack("<I", len(data)) + bytes(data[:_NEEDLE])
    found = raw.find(needle, at)
    if found < 0:  # a dictionary holds equal values once
        found = raw.find(needle, 0)
    if found < 0 or bytes(raw[found + 4 : found + 4 + len(data)]) != bytes(data):
        return -1
    return found + 4


class _Raw:
    """Bytes of a file from `start` on, with `find` and slices; nothing if there are to be none."""

    def __init__(self, uri: str, start: int, nbytes: int) -> None:
        self.uri, self.start, self.nbytes = uri, start, nbytes
        self._map: mmap.mmap | None = None
        self._data = b""

    def __enter__(self) -> "_Raw":
        if self.nbytes and is_remote(self.uri):
            self._data, self.start = bytes(read_bytes(self.uri, self.start, self.nbytes)), 0
        elif self.nbytes:
            with open(self.uri, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()

    def find(self, needle: bytes, at: int) -> int:
        """Place of the needle from `at` on; -1: not there."""
        found = (self._map or self._data).find(needle, self.start + at, self.start + self.nbytes)
        return -1 if found < 0 else found - self.start

    def __getitem__(self, part: slice) -> bytes:
        return (self._map or self._data)[self.start + part.start : self.start + part.stop]


def bytes_column(schema: pa.Schema) -> str | None:
    """Dotted name of the column of a Parquet file that holds videos; none: it holds none.

    Raises:  ValueError if there are several, and none has a usual name.
    """
    names = [name for name in (_bytes_of(field) for field in schema) if name is not None]
    usual = [name for wanted in BYTES for name in names if name.removesuffix(".bytes").lower() == wanted]
    if len(names) > 1 and not usual:
        raise ValueError(
            f"columns {', '.join(names)} all hold bytes; name the one with the videos {' or '.join(BYTES[:2])}"
        )
    return (usual or names or [None])[0]


def _bytes_of(field: pa.Field) -> str | None:
    kind = field.type
    if pa.types.is_struct(kind):
        inner = kind.get_field_index("bytes")
        return f"{field.name}.bytes" if inner >= 0 and _is_bytes(kind.field(inner).type) else None
    return field.name if _is_bytes(kind) else None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)

"""One row of a manifest at a time, in about a microsecond a column, from Arrow arrays that may be memory-mapped."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import pyarrow as pa

COLUMNS = (
    "uri",
    "duration_s",
    "seek",
    "bytes",
    "shard",
    "offset",
    "cell",
    "head",
    "tail",
    "key_s",
    "key_bytes",
)
"""What the tape and the decoders need to know of a row: the columns of the twin, in the order of Entry."""


class Entry(NamedTuple):
    """What COLUMNS say of one row; what they do not know is none."""

    uri: str
    duration_s: float
    """NaN in a bad row."""
    seek: Literal["planned", "linear"]
    nbytes: int | None
    shard: str | None
    offset: int | None
    cell: str | None
    head: int | None
    tail: int | None
    key_s: list[float] | None
    key_bytes: list[int] | None


class Lookup:
    """Rows by their number, over pieces that follow one another, each with COLUMNS."""

    def __init__(self, pieces: Iterable[pa.Table | pa.RecordBatch]) -> None:
        self._pieces = [_columns(piece) for piece in pieces]
        ends = [0, *accumulate(length for length, _ in self._pieces)]
        self._starts, self._rows = ends[:-1], ends[-1]

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Entry:
        if not 0 <= row < self._rows:
            raise IndexError(f"row {row} is not in a manifest of {self._rows} rows")
        piece = bisect_right(self._starts, row) - 1
        inside = row - self._starts[piece]
        values = [None if column is None else column[inside].as_py() for column in self._pieces[piece][1]]
        if values[1] is None:
            values[1] = float("nan")
        if values[2] != "linear":
            values[2] = "planned"
        return Entry(*values)  # type: ignore[arg-type]  # in the order of COLUMNS


def _columns(piece: Any) -> tuple[int, list[pa.Array | None]]:
    """Rows of a piece, and its columns; one that says nothing is none and costs nothing."""
    columns = [whole(piece.column(name)) for name in COLUMNS]
    return len(columns[0]), [None if column.null_count == len(column) else column for column in columns]


def whole(column: Any) -> pa.Array:
    """A column of a table or batch as one array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

"""One manifest of several: what the streams of a run draw from, and the sources of a stream."""

from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute

from rayjepa.data.columns import SCHEMA
from rayjepa.data.manifest import Manifest

_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def merged(parts: Sequence[tuple[str | None, Manifest]]) -> Manifest:
    """The rows of all `parts` in order, each with the name of the stream that has its source; none: the run.

    A path that is held out in one is held out in all, whatever the size of the sources that it is in.
    Raises:  ValueError if parts have labels of one name and different types.
    """
    tables = [_of_stream(videos.table, name) for name, videos in parts]
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"labels of the streams' videos cannot stand in one manifest: {error}; give them other names"
        ) from None
    held_out = table.filter(_pc.equal(table.column("split"), "holdout")).column("uri")
    split = _pc.if_else(_pc.is_in(table.column("uri"), value_set=held_out), "holdout", table.column("split"))
    return Manifest(_with(table, "split", split))


def of_source(videos: Manifest, name: str) -> Manifest:
    """The same rows, all of the source `name`."""
    return Manifest(_with(videos.table, "source", pa.repeat(pa.scalar(name, pa.string()), len(videos))))


def _of_stream(table: pa.Table, name: str | None) -> pa.Table:
    return _with(table, "stream", pa.repeat(pa.scalar(name, pa.string()), len(table)))


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    """`table` with other values in a column of the schema."""
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), values)

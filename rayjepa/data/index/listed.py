"""What is known of a video before it is opened: an Arrow row for each."""

from typing import Any

import pyarrow as pa

from rayjepa.data.columns import SCHEMA

LISTED: Any = pa.schema(
    [SCHEMA.field(name) for name in ("uri", "shard", "offset", "cell", "bytes", "modified", "source")]
)
"""Columns of a listing; labels may follow them."""


def rows_of(uris: pa.Array, **known: pa.Array | None) -> pa.Table:
    """Rows of LISTED with what is known; the rest is null."""
    columns: dict[str, Any] = {"uri": uris, **{name: values for name, values in known.items() if values is not None}}
    full = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(uris), field.type)
        for field in LISTED
    ]
    return pa.Table.from_arrays(full, schema=LISTED)


def with_column(table: pa.Table, field: pa.Field, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """`table` with other values in a column that it has."""
    return table.set_column(table.schema.get_field_index(field.name), field, values)

"""Shards: files that hold many videos, and what is in them."""

from typing import Any

import pyarrow as pa

from rayjepa.data.columns import SCHEMA
from rayjepa.data.index.cells import in_parquet
from rayjepa.data.index.endings import ending
from rayjepa.data.index.listed import LISTED, with_column
from rayjepa.data.index.tars import in_tar

MEMBERS: Any = LISTED.append(SCHEMA.field("reason"))
"""As LISTED; a row without uri says in `reason` what is wrong with the shard."""


def members(shard: str, nbytes: int, modified: str | None) -> pa.Table:
    """The videos that a shard holds, in its order: rows of MEMBERS, then its labels.

    Raises:  StorageError if remote storage does not give it; all else that is wrong with it is a row.
    """
    complaints: list[str] = []
    try:
        found: Any = (in_tar if ending(shard) == "tar" else in_parquet)(shard, nbytes, complaints)
    except OSError as error:
        found = complaints.append(f"{shard} cannot be read: {error.strerror or error}")
    table = found if found is not None else LISTED.empty_table()
    for name, value in (("shard", shard), ("modified", modified)):
        table = with_column(table, SCHEMA.field(name), pa.repeat(pa.scalar(value, SCHEMA.field(name).type), len(table)))
    table = table.append_column(MEMBERS.field("reason"), pa.nulls(len(table), pa.string()))
    said = pa.Table.from_pylist([{"shard": shard, "reason": text} for text in complaints], schema=MEMBERS)
    return pa.concat_tables([table, said], promote_options="default")

"""The manifest's columns, and what it takes to work on them without a Python object for each row."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from rayjepa.data.index.labels import PREFIX

SCHEMA: Any = pa.schema(
    [
        ("uri", pa.large_string()),  # absolute path or URL; of one among others in a shard, the shard's, # and its name
        ("shard", pa.large_string()),  # tar or Parquet file that holds it; null: uri names the file itself
        ("offset", pa.int64()),  # its first byte in the shard; null: no shard, or a compressed cell
        ("cell", pa.large_string()),  # COLUMN/ROW of a Parquet shard whose values are compressed
        ("bytes", pa.int64()),
        ("modified", pa.string()),  # what changes when the file does: time of change in ns, or an object's ETag
        ("hash", pa.string()),  # blake2b of its bytes, 32 hex digits; null: not read whole
        ("container", pa.string()),  # as FFmpeg names it
        ("codec", pa.string()),
        ("width", pa.int32()),  # pixels as coded, before rotation
        ("height", pa.int32()),
        ("rotation", pa.int16()),  # degrees counterclockwise from coded to displayed
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),  # first displayed frame to the end of the last
        ("frames", pa.int64()),
        ("start_pts", pa.int64()),  # of the first displayed frame
        ("time_base_num", pa.int32()),  # seconds per unit of time stamp: num / den
        ("time_base_den", pa.int32()),
        ("seek", pa.string()),  # planned | linear: how clips are read from it; null in a bad row
        ("damaged", pa.int64()),  # packets that a full decode refused; null: only the first frame was decoded
        ("origin", pa.large_string()),  # path of the video that this one was transcoded from; null: of none
        ("split", pa.string()),  # train | holdout
        ("status", pa.string()),  # ok | bad; a bad row knows its uri and reason, and maybe its bytes
        ("reason", pa.string()),
        ("source", pa.string()),  # name of the collection that it is from, by which data.sources weighs; null: none
        ("stream", pa.string()),  # name of the stream whose data.videos brought it; null: the run's data.videos
        # Of a large video: bytes [0, head) and the last `tail` hold its index; from byte key_bytes[k] on lie the frames
        # from key_s[k] seconds after the first on. Null: small, or read from its first packet on.
        ("head", pa.int64()),
        ("tail", pa.int64()),
        ("key_s", pa.large_list(pa.float32())),
        ("key_bytes", pa.large_list(pa.int64())),
    ]
)
_ALLOWED = {"split": ("train", "holdout"), "status": ("ok", "bad"), "seek": ("planned", "linear")}


def checked(table: pa.Table) -> pa.Table:
    """`table` with the columns of `SCHEMA` in order, then its labels; each column in one chunk.

    Raises:  ValueError if a column is missing, unknown, of another type, or says what a manifest cannot say.
    """
    names: list[str] = table.column_names
    labels = [n for n in names if n.startswith(PREFIX)]
    missing = [n for n in SCHEMA.names if n not in names]
    extra = [n for n in names if n not in SCHEMA.names and n not in labels]
    if missing or extra:
        parts = [f"{word} column(s) {', '.join(c)}" for word, c in (("missing", missing), ("unknown", extra)) if c]
        raise ValueError(f"{' and '.join(parts)}; extra columns are named {PREFIX}*")
    for field in SCHEMA:
        if table.schema.field(field.name).type != field.type:
            raise ValueError(f"column {field.name} is {table.schema.field(field.name).type}, not {field.type}")
    table = _one_chunk(table.select([*SCHEMA.names, *labels]))
    for name, allowed in _ALLOWED.items():
        if wrong := set(table.column(name).drop_null().unique().to_pylist()) - set(allowed):
            raise ValueError(
                f"column {name} holds {', '.join(sorted(map(repr, wrong)))}; allowed: {', '.join(allowed)}"
            )
    usable = equals(table.column("status").chunk(0), "ok")
    for name in ("split", "status", "seek"):
        if wrong := int(np.count_nonzero((usable | (name != "seek")) & table.column(name).is_null().to_numpy())):
            raise ValueError(f"{wrong} row(s) have no {name}")
    for name in ("duration_s", "fps"):
        values = table.column(name).to_numpy()
        if wrong := int(np.count_nonzero(usable & ~((values > 0) & np.isfinite(values)))):
            raise ValueError(f"{wrong} row(s) have status ok, but no {name} above 0")
    if table.column("uri").null_count:
        raise ValueError(f"{table.column('uri').null_count} row(s) have no uri")
    return table


def _one_chunk(table: pa.Table) -> pa.Table:
    """`table` with one contiguous array in each column; an empty table has an empty array, not none."""
    columns = [c.combine_chunks() if c.num_chunks != 1 else c.chunk(0) for c in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema.remove_metadata())


def equals(column: pa.Array, value: str) -> Bool[np.ndarray, " n"]:
    """Which entries of a text column are `value`, without a Python object for each."""
    coded = column.dictionary_encode()
    return coded.indices.to_numpy(zero_copy_only=False) == coded.dictionary.index(value).as_py()


def content(column: pa.Array) -> list[memoryview]:
    """What a column of numbers or text holds, as bytes to hash: the same however its buffers are cut."""
    if pa.types.is_primitive(column.type):
        return [np.ascontiguousarray(column.fill_null(0).to_numpy()).data]
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    column = column.fill_null("")
    _, offsets, letters = column.buffers()
    bounds = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return [np.diff(bounds).data, memoryview(letters or b"")[bounds[0] : bounds[-1]]]

"""What an earlier index knows of the videos that are listed now."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int64

from rayjepa.data.columns import SCHEMA, equals
from rayjepa.data.index.listed import LISTED, with_column
from rayjepa.data.lookup import whole

_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What has become of the rows of the manifest before."""

    kept: int
    """Videos that are as they were: not opened."""
    new: int
    changed: int
    """Videos with other bytes or another time, those that could not be read, and those of which more is wanted now."""
    gone: int

    def __str__(self) -> str:
        return f"{self.kept} kept, {self.new} new, {self.changed} changed, {self.gone} gone"


def rows_in(known: pa.Table, uris: pa.Array) -> Int64[np.ndarray, " n"]:
    """Row of `known` that has each uri, the first if there are several; -1: none."""
    if not len(known):
        return np.full(len(uris), -1, np.int64)
    rows = _pc.index_in(uris, value_set=whole(known.column("uri")))
    return _pc.fill_null(rows, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def still_holds(
    listed: pa.Table, known: pa.Table, rows: Int64[np.ndarray, " n"], *, is_full: bool, hashes: bool
) -> Bool[np.ndarray, " n"]:
    """Of each listed video, whether row `rows[k]` of `known` says all that is wanted, of the very same bytes."""
    there = rows >= 0
    of = (
        known.select(["shard", "offset", "cell", "bytes", "modified", "status", "damaged", "hash"]).take(
            pa.array(np.maximum(rows, 0))
        )
        if len(known)
        else None
    )
    if of is None:
        return there
    same = there
    for name in ("bytes", "modified"):
        same = same & _true(_pc.equal(whole(listed.column(name)), whole(of.column(name))))
    for name in ("shard", "offset", "cell"):  # of a shard that was written anew within one tick, or is none any more
        now, before = whole(listed.column(name)), whole(of.column(name))
        same = same & (_true(_pc.equal(now, before)) | (_true(now.is_null()) & _true(before.is_null())))
    usable = equals(whole(of.column("status")), "ok")
    for name in ["damaged"] * is_full + ["hash"] * hashes:
        same = same & (_true(whole(of.column(name)).is_valid()) | ~usable)
    return same


def joined(listed: pa.Table, known: pa.Table, rows: Int64[np.ndarray, " n"]) -> pa.Table:
    """The manifest's columns of the listed videos: row `rows[k]` of `known`, with its source as it is listed now."""
    table = known.take(pa.array(rows))
    table = with_column(table, SCHEMA.field("source"), listed.column("source"))
    for name in listed.column_names:
        if name not in LISTED.names:
            table = table.append_column(name, listed.column(name))
    return table


def change(uris: pa.Array, before: pa.Table, kept: Bool[np.ndarray, " n"]) -> Change:
    """What has become of the rows of `before`, now that `uris` are listed and `kept` of them are as they were."""
    rows = rows_in(before, uris)
    there = int(np.count_nonzero(rows >= 0))
    as_before = int(np.count_nonzero(kept & (rows >= 0)))
    gone = len(before) - len(np.unique(rows[rows >= 0]))
    return Change(kept=as_before, new=len(uris) - there, changed=there - as_before, gone=gone)


def _true(values: Any) -> Bool[np.ndarray, " n"]:
    return _pc.fill_null(values, False).to_numpy(zero_copy_only=False)

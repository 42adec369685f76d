"""Videos that are there twice: those with the same bytes, by their hash."""

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int64, UInt64

from rayjepa.data.columns import SCHEMA, equals
from rayjepa.data.index.listed import with_column
from rayjepa.data.lookup import whole

SAME = "same bytes as "
"""How the reason of a row begins that was left out for having the bytes of another."""
HASH_LETTERS = 32
"""Hex digits of a hash."""
_ODD = 0x9E3779B97F4A7C15
"""Odd, so that no key loses a bit by it."""
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def repeated(table: pa.Table) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Usable rows that have the bytes of one before them, rising, and of each the first that has them."""
    hashes = whole(table.column("hash"))
    good = np.flatnonzero(equals(whole(table.column("status")), "ok") & hashes.is_valid().to_numpy(False))
    texts = hashes if len(good) == len(hashes) else hashes.take(pa.array(good))
    keys = _keys(texts)
    order = np.argsort(keys, kind="stable")  # equal ones stand together, and in the order of their rows
    starts = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])[: len(order)]
    first = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    again, own = order[~starts], first[~starts]
    same = _pc.equal(texts.take(pa.array(again)), texts.take(pa.array(own))).to_numpy(False)
    rise = np.argsort(again[same])
    return good[again[same][rise]], good[own[same][rise]]


def _keys(hashes: pa.Array) -> UInt64[np.ndarray, " n"]:
    """A number for each hash, equal for equal ones: a table of ten million texts would take gigabytes."""
    _, ends, letters = hashes.buffers()
    bounds = np.frombuffer(ends, np.int32)[hashes.offset : hashes.offset + len(hashes) + 1] if len(hashes) else [0]
    if not len(hashes) or (np.diff(bounds) != HASH_LETTERS).any():  # somebody else's
        return hashes.dictionary_encode().indices.to_numpy().astype(np.uint64)
    words = np.frombuffer(letters, np.uint64, len(hashes) * HASH_LETTERS // 8, int(bounds[0])).reshape(len(hashes), -1)
    return words[:, 0] * np.uint64(_ODD) + words[:, 1]


def dropped(table: pa.Table) -> pa.Table:
    """The table with each row of `repeated` as a bad one, whose reason says whose bytes it has."""
    rows, firsts = repeated(table)
    again = np.zeros(len(table), bool)
    again[rows] = True
    mask = pa.array(again)
    reasons = _pc.binary_join_element_wise(
        SAME.rstrip(), whole(table.column("uri")).take(pa.array(firsts)).cast("string"), " "
    )
    reason = _pc.replace_with_mask(whole(table.column("reason")), mask, reasons)
    table = with_column(table, SCHEMA.field("status"), _pc.if_else(mask, "bad", whole(table.column("status"))))
    return with_column(table, SCHEMA.field("reason"), reason)


def restored(table: pa.Table) -> pa.Table:
    """The table as it was before `dropped`."""
    twice = _pc.fill_null(_pc.starts_with(whole(table.column("reason")), SAME), False)
    for name, value in (("status", "ok"), ("reason", None)):
        field = SCHEMA.field(name)
        table = with_column(table, field, _pc.if_else(twice, pa.scalar(value, field.type), whole(table.column(name))))
    return table

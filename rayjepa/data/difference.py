"""What tells two manifests apart, in words: rows added, gone and changed, and videos that changed sides."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int64

from rayjepa.data.choice import Videos
from rayjepa.data.fingerprint import DECISIVE, LATER
from rayjepa.data.lookup import whole

_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker
_COLUMNS = (*DECISIVE, *LATER, "hash")


class Some(NamedTuple):
    """Rows of one kind: how many, and the first."""

    number: int
    first: str
    """Its path; empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What changed from one manifest to another."""

    added: Some
    gone: Some
    changed: dict[str, Some]
    """By column, of the rows that both have; `first` says from what to what."""
    to_holdout: Some
    """Usable videos that were trained on and are held out now, known by their path or their bytes."""

    def __str__(self) -> str:
        parts = [f"{some.number:,} row(s) {what}" + _first(some) for what, some in self._kinds() if some.number]
        return "; ".join(parts) or "the same rows in another order"

    def _kinds(self) -> list[tuple[str, Some]]:
        changed = [(f"with another {column}", some) for column, some in self.changed.items()]
        return [("added", self.added), ("gone", self.gone), *changed]


def difference(old: Videos, new: Videos) -> Difference:
    """What changed from `old` to `new`, of what decides the tape. All paths of both are held in memory meanwhile."""
    before, after = (_table(videos) for videos in (old, new))
    keys, others = (_keys(table) for table in (before, after))
    place = _pc.index_in(others, value_set=keys)  # of each new row among the old ones
    is_new = place.is_null().to_numpy(zero_copy_only=False)
    is_gone = _pc.invert(_pc.is_in(keys, value_set=others)).to_numpy(zero_copy_only=False)
    shared = np.flatnonzero(~is_new)
    origin = place.drop_null().to_numpy().astype(np.int64)
    changed: dict[str, Some] = {}
    for name in (*DECISIVE[1:], *LATER):
        was, now = before.column(name).take(pa.array(origin)), after.column(name).take(pa.array(shared))
        differs = np.flatnonzero(~_same(was, now))
        if len(differs):
            at = int(differs[0])
            uri = after.column("uri")[int(shared[at])].as_py()
            changed[name] = Some(len(differs), f"{uri}: {was[at].as_py()} -> {now[at].as_py()}")
    return Difference(
        added=_some(after, np.flatnonzero(is_new)),
        gone=_some(before, np.flatnonzero(is_gone)),
        changed=changed,
        to_holdout=_to_holdout(before, after),
    )


def _to_holdout(before: pa.Table, after: pa.Table) -> Some:
    """Usable training videos of `before` that `after` holds out."""
    trained = before.filter(_is(before, "train"))
    held_out = np.flatnonzero(_is(after, "holdout").to_numpy(zero_copy_only=False))
    rows = after.take(pa.array(held_out))
    known = _pc.is_in(rows.column("uri"), value_set=whole(trained.column("uri")))
    hashes = whole(trained.column("hash")).drop_null()
    same = _pc.and_(rows.column("hash").is_valid(), _pc.is_in(rows.column("hash"), value_set=hashes))
    return _some(rows, np.flatnonzero(_pc.or_(known, same).to_numpy()))


def _is(table: pa.Table, split: str) -> pa.Array:
    return whole(_pc.and_(_pc.equal(table.column("split"), split), _pc.equal(table.column("status"), "ok")))


def _table(videos: Videos) -> pa.Table:
    return pa.concat_tables(list(videos.scan(_COLUMNS))).combine_chunks()


def _keys(table: pa.Table) -> pa.Array:
    """Stream and path of each row: two streams may have a file each by itself."""
    stream = table.column("stream").cast(pa.large_string()).fill_null("")
    return whole(_pc.binary_join_element_wise(stream, table.column("uri"), pa.scalar("\n", pa.large_string())))


def _same(one: Any, other: Any) -> Bool[np.ndarray, " n"]:
    """Which entries are equal, or both null."""
    equal = _pc.fill_null(_pc.equal(one, other), False)
    return _pc.or_(equal, _pc.and_(one.is_null(), other.is_null())).to_numpy(zero_copy_only=False)


def _some(table: pa.Table, rows: Int64[np.ndarray, " n"]) -> Some:
    return Some(len(rows), table.column("uri")[int(rows[0])].as_py() if len(rows) else "")


def _first(some: Some) -> str:
    return f" ({some.first})" if some.number == 1 else f" (first: {some.first})"

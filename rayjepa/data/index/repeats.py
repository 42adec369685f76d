"""Paths that a manifest has more than once: harmless in two streams, a leak if one is trained and another held out."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from rayjepa.data.choice import Videos
from rayjepa.data.columns import equals
from rayjepa.data.lookup import whole

_COLUMNS = ("uri", "stream", "split", "status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Usable rows that share their path with another."""

    twice: int = 0
    """Rows that a stream has already under the same path."""
    first: str = ""
    """The first such path; empty: there is none."""
    leaks: int = 0
    """Paths that are trained on in one row, and held out in another."""
    leak: str = ""
    """The first of those."""


def repeats(videos: Videos) -> Repeats:
    """What a manifest has more than once. Paths are told apart by 64 bits, of which a billion share none, likely."""
    often = _often(videos)
    if not len(often):
        return Repeats()
    parts: list[Int64[np.ndarray, "n 4"]] = []
    streams: dict[str | None, int] = {}
    first = 0
    for table in videos.scan(_COLUMNS):
        hashes = _hashes(table)
        usable = equals(whole(table.column("status")), "ok")
        rows = np.flatnonzero(usable & np.isin(hashes, often))
        coded = whole(table.column("stream")).dictionary_encode()
        codes = [streams.setdefault(name, len(streams)) for name in (*coded.dictionary.to_pylist(), None)]
        stream = np.array(codes)[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        held_out = equals(whole(table.column("split")), "holdout")
        parts.append(np.stack([hashes[rows], stream[rows], held_out[rows], rows + first], axis=1))
        first += len(table)
    found = np.concatenate(parts)
    within = _beyond_first(found[:, :2])
    sides = np.unique(found[:, [0, 2]], axis=0)[:, 0]
    leaks = sides[1:][sides[1:] == sides[:-1]]
    return Repeats(
        twice=len(within),
        first=videos.entry(int(found[within[0], 3])).uri if len(within) else "",
        leaks=len(leaks),
        leak=videos.entry(int(found[found[:, 0] == leaks[0], 3][0])).uri if len(leaks) else "",
    )


def _beyond_first(pairs: Int64[np.ndarray, "n 2"]) -> Int64[np.ndarray, " m"]:
    """Places of rows that are equal to one before them, rising."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: of equal ones the first stays the first
    ordered = pairs[order]
    return np.sort(order[1:][(ordered[1:] == ordered[:-1]).all(axis=1)])


def _often(videos: Videos) -> Int64[np.ndarray, " n"]:
    """Hashes of the paths that more than one row has."""
    hashes = np.concatenate([np.empty(0, np.int64), *(_hashes(table) for table in videos.scan(("uri",)))])
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _hashes(table: pa.Table) -> Int64[np.ndarray, " n"]:
    uris = table.column("uri").to_pylist()
    return np.fromiter(map(hash, uris), np.int64, len(uris))

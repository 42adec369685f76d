"""Make a manifest: list what sources name, look once at each video that is not known yet, decide what is held out."""

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool

from rayjepa.config import DataConfig
from rayjepa.data import manifest
from rayjepa.data.columns import SCHEMA, equals
from rayjepa.data.index import known
from rayjepa.data.index.duplicates import dropped, restored
from rayjepa.data.index.known import Change, joined, rows_in, still_holds
from rayjepa.data.index.labels import beside, read_labels
from rayjepa.data.index.listed import with_column
from rayjepa.data.index.parts import parts_of
from rayjepa.data.index.probing import Look, Progress, Spread, Threads, Verify
from rayjepa.data.index.sources import Listing, list_videos
from rayjepa.data.index.summary import SPLIT_FROM, counts, named
from rayjepa.data.lookup import whole
from rayjepa.data.manifest import Manifest

Duplicates = Literal["keep", "drop"]
"""What becomes of a video that has the bytes of one before it: it stays, or it is a bad row."""
log = logging.getLogger(__name__)
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """A manifest that has been written, and what has changed since the one before."""

    videos: Manifest
    change: Change | None
    """None: there was none before."""
    keep_split: int
    """Rows whose split is that of the manifest before, and would be the other by data.holdout alone."""


def index(
    *sources: str | Path,
    cfg: DataConfig,
    labels: Path | None = None,
    verify: Verify = "quick",
    hashes: bool = True,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of the videos that `sources` name (`list_videos`), each looked at in a decoder's child process.

    `verify` full decodes every frame: what fails is a bad row with its reason, and the others say what was damaged.
    `labels` is a CSV (`read_labels`); none: labels.csv at the root of a folder, if it is there and fits.
    Raises:  ValueError, one sentence with the remedy, if there is no video or none can be used.
    """
    spread = Threads(Look(cfg=cfg, verify=verify, hashes=hashes), processes=processes)
    listing = list_videos(*sources, expand=spread.members)
    found: list[pa.Table] = [SCHEMA.empty_table()]
    _probe(listing.table, spread, found.append, progress)
    videos, _ = _manifest(listing, pa.concat_tables(found), None, cfg=cfg, labels=labels, duplicates="keep")
    return _usable(videos, sources)


def update(
    sources: Sequence[str | Path],
    out: Path,
    *,
    look: Look,
    labels: Path | None = None,
    duplicates: Duplicates = "keep",
    fresh: bool = False,
    spread: Spread | None = None,
    progress: Progress | None = None,
) -> Indexed:
    """Write the manifest of `sources` to `out`; what it holds of files that have not changed is not looked at again.

    What is finished is kept beside `out` until the manifest is written, and an interrupted call goes on from there.
    A video that is in `out` keeps its split. `fresh` looks at everything again.
    Raises:  as `index`; ValueError if `out` is there and no manifest; RuntimeError if another process writes to it.
    """
    spread = spread or Threads(look)
    began = time.monotonic()
    before = manifest.read(out).table if out.exists() else None
    with parts_of(out) as parts:
        if fresh:
            parts.forget()
        listing = list_videos(*sources, expand=spread.members, known=None if fresh else before)
        old = SCHEMA.empty_table() if before is None or fresh else restored(before.select(SCHEMA.names))
        memory = pa.concat_tables([parts.rows(), old])
        uris = _uris(listing)
        rows = rows_in(memory, uris)
        holds = still_holds(listing.table, memory, rows, is_full=look.verify == "full", hashes=look.hashes)
        left = listing.table.filter(pa.array(~holds))
        log.info(
            "%d files listed in %.1f s; %d are known as they are", len(uris), time.monotonic() - began, holds.sum()
        )
        if len(left):
            _probe(left, spread, parts.add, progress)
            parts.flush()
            memory = pa.concat_tables([parts.rows(), old])
        videos, keep_split = _manifest(listing, memory, before, cfg=look.cfg, labels=labels, duplicates=duplicates)
        manifest.write(_usable(videos, sources), out)
        parts.clear()
    change = None if before is None else known.change(uris, before, holds)
    return Indexed(videos=videos, change=change, keep_split=keep_split)


def _probe(rows: pa.Table, spread: Spread, add: Callable[[pa.Table], object], progress: Progress | None) -> None:
    done = 0
    for table in spread.probed(rows):
        add(table)
        done += len(table)
        if progress:
            progress(done, len(rows))
    assert done == len(rows), f"{done} of {len(rows)} rows came back"


def _manifest(
    listing: Listing,
    memory: pa.Table,
    before: pa.Table | None,
    *,
    cfg: DataConfig,
    labels: Path | None,
    duplicates: Duplicates,
) -> tuple[Manifest, int]:
    """Rows of the listing, in its order, as `memory` has them; and how many keep a split against data.holdout."""
    uris = _uris(listing)
    table = joined(listing.table, memory, rows_in(memory, uris))
    if duplicates == "drop":
        table = dropped(table)
    usable = int(np.count_nonzero(_is(table, "status", "ok")))
    split = held_out(uris, usable=usable, holdout=cfg.holdout)
    keep_split = 0
    if before is not None:
        rows = rows_in(before, uris)
        earlier = whole(before.column("split")).take(pa.array(rows, mask=rows < 0))
        split, computed = _pc.coalesce(earlier, split), split
        keep_split = int(np.count_nonzero(_pc.not_equal(split, computed).to_numpy(zero_copy_only=False)))
    table = with_column(table, SCHEMA.field("split"), split)
    for name, values in _labels(listing, uris, labels).items():
        at = table.column_names.index(name) if name in table.column_names else None
        table = table.append_column(name, values) if at is None else table.set_column(at, name, values)
    return Manifest(table), keep_split


def _usable(videos: Manifest, sources: Sequence[str | Path]) -> Manifest:
    """The manifest itself, if it holds a video that can be used.

    Raises:  ValueError with reasons and names if it does not.
    """
    if videos.usable.any():
        return videos
    why = f"{counts(videos.column('reason'))}; first: {named(videos.table, 3)}"
    raise ValueError(
        f"none of the {len(videos)} video(s) of {', '.join(map(str, sources))} can be used: {why}. "
        "Check one with `ffprobe`, or name other files"
    )


def held_out(uris: pa.Array, *, usable: int, holdout: float) -> pa.Array:
    """Column `split`: held out is who has the hash of its path below `holdout`, whatever else is in the manifest."""
    bound = 0 if usable < SPLIT_FROM else int(holdout * 2**64)
    codes = np.fromiter((_hash(uri) < bound for uri in _texts(uris)), np.int8, len(uris)) if bound else None
    codes = np.zeros(len(uris), np.int8) if codes is None else codes
    return pa.DictionaryArray.from_arrays(codes, ["train", "holdout"]).cast(pa.string())


def _texts(uris: pa.Array) -> Any:
    """The texts one after the other, some thousands in memory."""
    for at in range(0, len(uris), 4096):
        yield from uris.slice(at, 4096).to_pylist()


def _hash(uri: str) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8, person=b"rayjepa.holdout").digest(), "little")


def _is(table: pa.Table, name: str, value: str) -> Bool[np.ndarray, " n"]:
    return equals(whole(table.column(name)), value)


def _uris(listing: Listing) -> pa.Array:
    return whole(listing.table.column("uri"))


def _labels(listing: Listing, uris: pa.Array, labels: Path | None) -> dict[str, pa.Array]:
    """Label columns of the CSV that was asked for, or of those that lie beside the videos."""
    if labels is not None:
        return read_labels(labels, uris=uris)
    columns: dict[str, pa.Array] = {}
    for place in filter(None, map(beside, listing.folders)):
        try:
            found = read_labels(place, uris=uris)
        except ValueError as error:  # it may have been put there for somebody else
            warnings.warn(f"{error}. No labels are taken", stacklevel=4)
            continue
        for name, values in found.items():
            columns[name] = values if name not in columns else _pc.coalesce(columns[name], values)
    return columns

"""Make a manifest: list what a source names, probe each video once, decide what is held out."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayjepa.config import DataConfig
from rayjepa.data.columns import SCHEMA, equals
from rayjepa.data.labels import read_labels
from rayjepa.data.manifest import SPLIT_FROM, Manifest, counts, named
from rayjepa.data.probing import Progress, Verify, probe_all
from rayjepa.data.sources import Listing, list_videos


def index(
    source: str | Path,
    *,
    cfg: DataConfig,
    labels: Path | None = None,
    verify: Verify = "quick",
    processes: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of the videos that `source` names (`list_videos`), each probed in a decoder's child process.

    `verify` full decodes every frame: what fails is a bad row with its reason, and the others say what was damaged.
    `labels` is a CSV (`read_labels`); none: labels.csv at the root of a folder, if it is there and fits.
    Raises:  ValueError, one sentence with the remedy, if there is no video or none can be used.
    """
    listing = list_videos(source)
    parts = probe_all(listing.uris, cfg=cfg, verify=verify, processes=processes, progress=progress)
    table = pa.Table.from_batches([pa.RecordBatch.from_pylist(rows, schema=SCHEMA) for rows in parts])
    usable = int(np.count_nonzero(equals(table.column("status").combine_chunks(), "ok")))
    at = SCHEMA.get_field_index("split")
    table = table.set_column(at, SCHEMA.field(at), _split(listing.uris, usable=usable, holdout=cfg.holdout))
    for name, values in _labels(listing, labels).items():
        table = table.append_column(name, values)
    manifest = Manifest(table)
    if not usable:
        raise ValueError(
            f"none of the {len(manifest)} video(s) of {source} can be used: {counts(manifest.column('reason'))}; "
            f"first: {named(manifest, 3)}. Check one with `ffprobe`, or name other files"
        )
    return manifest


def _split(uris: Sequence[str], *, usable: int, holdout: float) -> pa.Array:
    """Column `split`: held out is who has the hash of its path below `holdout`, whatever else is in the manifest."""
    bound = 0 if usable < SPLIT_FROM else int(holdout * 2**64)
    codes = np.fromiter((_hash(u) < bound for u in uris), np.int8, len(uris))
    return pa.DictionaryArray.from_arrays(codes, ["train", "holdout"]).cast(pa.string())


def _hash(uri: str) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8, person=b"rayjepa.holdout").digest(), "little")


def _labels(listing: Listing, labels: Path | None) -> dict[str, pa.Array]:
    """Label columns of the CSV that was asked for, or of the one that lies beside the videos."""
    uris = pa.array(listing.uris, pa.large_string())
    if labels is not None:
        return read_labels(labels, uris=uris)
    if listing.folder is None or not (beside := listing.folder / "labels.csv").is_file():
        return {}
    try:
        return read_labels(beside, uris=uris)
    except ValueError as error:  # it may have been put there for somebody else
        warnings.warn(f"{error}. No labels are taken", stacklevel=3)
        return {}

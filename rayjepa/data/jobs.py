"""What is to be made anew of a manifest: a job for each of its videos."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayjepa.data.clip import Place
from rayjepa.data.manifest import Manifest
from rayjepa.data.storage.remote import is_remote

LONGEST_STEM = 120
"""Bytes of a video's name that are kept; with what is added a name stays below the 255 that Linux allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One video that is to be made anew."""

    uri: str
    name: str
    """Of the new file, in the folder."""
    source: tuple[int, int, float]
    """Bytes, frames and duration_s by the manifest: while they stay, what was made of it stays."""
    place: Place | None = None
    """Where its bytes lie; none: they are the file that `uri` names."""


def name_of(uri: str) -> str:
    """Name of the new file: what can be read of the old one's, and a hash of its whole path."""
    stem = Path(uri).stem.lstrip(".").encode()[:LONGEST_STEM].decode(errors="ignore").strip() or "video"
    return f"{stem}-{hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()}.mp4"


def jobs_of(videos: Manifest) -> list[Job]:
    """A job for each usable video, in the order of the manifest, each path once; images stay as they are."""
    good = videos.table.filter(pa.array(videos.usable & ~videos.images))
    rows = good.select(["uri", "bytes", "frames", "duration_s", "shard", "offset", "cell"]).to_pylist()
    return list({row["uri"]: _job(row) for row in rows}.values())


def _job(row: dict[str, Any]) -> Job:
    uri, shard, source = row["uri"], row["shard"], (row["bytes"], row["frames"], row["duration_s"])
    apart = shard is not None or is_remote(uri)
    place = Place(shard or uri, row["bytes"], row["offset"], row["cell"]) if apart else None
    return Job(uri=uri, name=name_of(uri), source=source, place=place)

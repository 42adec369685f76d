"""Videos and the decoder: are the files there, and does FFmpeg's child start and give up what it should."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from rayjepa.config import DataConfig, RunConfig, streams_of
from rayjepa.data import manifest
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.endings import EXTENSIONS, SHARDS, ending
from rayjepa.data.index.paths import FILE
from rayjepa.data.index.sources import is_manifest, list_videos
from rayjepa.data.sandbox import START_S
from rayjepa.data.storage.faults import StorageError
from rayjepa.data.storage.remote import found, is_remote
from rayjepa.doctor.finding import Check, Finding, error, ok, warning

MENDED = (8, 1, 2)
"""FFmpeg in which CVE-2026-8461 is mended; distributions may have mended it in older ones."""
SAMPLE = 64
"""Videos of a manifest that are looked at, spread over it."""


def feeding_checks(run: RunConfig) -> list[Check]:
    return [Check("decoder", lambda: decoder(run), START_S + 20), Check("videos", lambda: videos(run), 30.0)]


def decoder(run: RunConfig) -> list[Finding]:
    """What a decoder's child says of itself, once it has decoded a clip of its own and given up what it can."""
    try:
        with Decoder(run.data) as child:
            versions, isolation = child.versions, child.isolation
    except RuntimeError as failure:  # too old, or it does not start
        return [error("decoder", str(failure), "pip install --upgrade 'av>=18.1'")]
    return [ffmpeg(versions["PyAV"], av.ffmpeg_version_info, versions["libavcodec"]), sandbox(isolation)]


def ffmpeg(pyav: str, version: str, libavcodec: str) -> Finding:
    """PyAV's libraries against those with a known hole; older ones than decoding needs end the child."""
    found = f"PyAV {pyav} with FFmpeg {version} (libavcodec {libavcodec})"
    numbers = re.match(r"n?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers and tuple(int(part or 0) for part in numbers.groups()) < MENDED:
        what = f"{found}; before {'.'.join(map(str, MENDED))} a video can write where it should not (CVE-2026-8461, in "
        what += "the MagicYUV decoder, which is not on the list of those that rayjepa opens)"
        return warning("ffmpeg", what, "pip install --upgrade --only-binary av 'av>=18.1'")
    return ok("ffmpeg", found)


def sandbox(isolation: tuple[str, ...]) -> Finding:
    """What FFmpeg's process cannot do any more."""
    listed = ", ".join(isolation)
    if "seccomp" not in isolation:
        what = f"FFmpeg runs without seccomp (in effect: {listed or 'nothing'}): a video that takes it over may open "
        remedy = "docker: no --security-opt seccomp=…; Kubernetes: seccompProfile RuntimeDefault; x86_64 or aarch64"
        return warning("sandbox", f"{what}files and sockets as this user", remedy)
    return ok("sandbox", listed)


def videos(run: RunConfig) -> list[Finding]:
    """Whether the files that the run's streams would train on are there and can be read by this user."""
    sources = {stream.run.data.videos: stream.run.data for stream in streams_of(run)}
    return [finding for data in sources.values() for finding in _source(data)]


def _source(data: DataConfig) -> list[Finding]:
    source = data.videos
    if source is None:
        return [_cache(Path(data.cache).expanduser())]
    path = Path(source.removeprefix(FILE)).expanduser()
    try:
        if is_manifest(source):
            return _manifest(path)
        if path.is_dir():
            first = next(_videos_below(path), None)
            if first is None:
                what = f"{path} holds no file with the extension of a video, an image or a shard"
                return [error("videos", what, "name another with data.videos, or a .txt list of other files")]
            return [_readable([first], f"{path}: {first} is there")]
        uris = list_videos(source).uris
    except ValueError as mistake:  # written for a user, with its remedy
        return [
            error("videos", str(mistake), "data.videos=… names a folder, glob, list, shard, URL or .parquet manifest")
        ]
    except StorageError as refusal:
        return [error("videos", str(refusal), "make it readable from here, or name another with data.videos")]
    return [_readable(_spread(uris), f"{source}: {len(uris)} files")]


def _cache(home: Path) -> Finding:
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        what = f"synthetic, to be made in {home}, which cannot be written"
        return error("videos", what, "data.cache=FOLDER, or data.videos=…")
    return ok("videos", f"synthetic, {'in' if home.exists() else 'to be made in'} {home} (data.cache)")


def _manifest(path: Path) -> list[Finding]:
    table = manifest.read(path)
    rows = [int(row) for row in table.train_rows]
    seen = [table.entry(row) for row in _spread(rows)]
    files = [entry.shard or entry.uri for entry in seen]
    lines = [_readable(files, f"{path}: {len(table)} rows, {len(rows)} to train")]
    if not rows:
        what = f"{path}: none of {len(table)} rows can be trained"
        lines = [error("videos", what, "`rayjepa index SOURCE -o FILE` lists why each is bad; lower data.holdout")]
    return lines


def _readable(paths: list[str], found: str) -> Finding:
    lost = [path for path in paths if not _is_there(path)]
    if lost:
        what = f"{found}; {len(lost)} of {len(paths)} looked at cannot be read, first: {lost[0]}"
        return error("videos", what, "mount them at the same paths as at index time, or `rayjepa index` them again")
    return ok("videos", f"{found}, {len(paths)} looked at can be read")


def _is_there(path: str) -> bool:
    if not is_remote(path):
        return os.access(path, os.R_OK)
    try:
        return found(path, tries=1).nbytes >= 0
    except StorageError:
        return False


def _spread(items: list[Any]) -> list[Any]:
    return items[:: max(1, len(items) // SAMPLE)][:SAMPLE]


def _videos_below(folder: Path) -> Iterator[str]:
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (os.path.join(here, f) for f in sorted(files) if ending(f) in EXTENSIONS or ending(f) in SHARDS)

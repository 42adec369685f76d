"""The manifest: one Parquet row for each video, made once, read by the tape."""

import contextlib
import hashlib
import os
import uuid
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Bool, Float64, Int64

from rayjepa.config import DataConfig
from rayjepa.data.columns import SCHEMA, checked, content, equals
from rayjepa.data.labels import PREFIX
from rayjepa.data.video import IMAGES

VERSION = 4
"""Format of the file; a change of column or meaning raises it. OLD_VERSIONS are read too."""

OLD_VERSIONS = ("2", "3")
"""Without the columns that came later; in 3, `source` is what `stream` is now."""

SPLIT_FROM = 20
"""Usable videos from which on some are held out."""

_METADATA = b"rayjepa.manifest"


@dataclass(frozen=True)
class Manifest:
    """Videos and images and what is known of them, as an Arrow table: `SCHEMA`, then label columns `label_*`.

    Rows stay in Arrow, about 0.2 kB each, so ten million fit in memory; a pickle carries the table alone.
    Raises:  ValueError if a column is missing, extra, of another type, or says what a manifest cannot say.
    """

    table: pa.Table

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", checked(self.table))

    def __len__(self) -> int:
        return self.table.num_rows

    def __reduce__(self) -> tuple[type["Manifest"], tuple[pa.Table]]:
        return Manifest, (self.table,)

    def column(self, name: str) -> pa.Array:
        """One column as a single Arrow array."""
        return self.table.column(name).chunk(0)

    def uri(self, row: int) -> str:
        """Absolute path of the video in row `row`."""
        return self.column("uri")[row].as_py()

    @cached_property
    def duration_s(self) -> Float64[np.ndarray, " n"]:
        """Duration of each video in seconds; NaN for bad rows."""
        return self.column("duration_s").to_numpy(zero_copy_only=False)

    @cached_property
    def fps(self) -> Float64[np.ndarray, " n"]:
        """Average frame rate of each video; NaN for bad rows."""
        return self.column("fps").to_numpy(zero_copy_only=False)

    @cached_property
    def linear(self) -> Bool[np.ndarray, " n"]:
        """Which videos are read from their first packet on, since seeks in them are not exact."""
        return equals(self.column("seek"), "linear")

    @cached_property
    def usable(self) -> Bool[np.ndarray, " n"]:
        """Which rows passed the probe."""
        return equals(self.column("status"), "ok")

    @cached_property
    def images(self) -> Bool[np.ndarray, " n"]:
        """Which rows are images, from which no clip of several frames is drawn."""
        coded = self.column("container").dictionary_encode()
        codes = [code for code, name in enumerate(coded.dictionary.to_pylist()) if name in IMAGES]
        return np.isin(coded.indices.to_numpy(zero_copy_only=False), codes)

    def of_stream(self, name: str | None) -> Bool[np.ndarray, " n"]:
        """Which rows the data.videos of stream `name` brought; none: those of the run."""
        column = self.column("stream")
        return column.is_null().to_numpy(zero_copy_only=False) if name is None else equals(column, name)

    @cached_property
    def train_rows(self) -> Int64[np.ndarray, " m"]:
        """Usable rows that the tape draws from, rising."""
        return np.flatnonzero(self.usable & equals(self.column("split"), "train"))

    @cached_property
    def holdout_rows(self) -> Int64[np.ndarray, " m"]:
        """Usable rows that are never trained, rising."""
        return np.flatnonzero(self.usable & equals(self.column("split"), "holdout"))

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over what decides the tape: uri, bytes, duration, frames, split, status, stream, source."""
        digest = hashlib.blake2b(b"%d" % len(self), digest_size=16, person=_METADATA)
        names = ["uri", "bytes", "duration_s", "frames", "split", "status"]
        names += [name for name in ("stream", "source") if self.column(name).null_count < len(self)]
        for name in names:
            for part in content(self.column(name)):
                digest.update(part)
        return digest.hexdigest()

    def summary(self, cfg: DataConfig | None = None) -> str:
        """Lines for a person: counts, codecs, lengths, split, what is bad and why; with `cfg`, the short videos too."""
        usable, train, holdout = int(self.usable.sum()), len(self.train_rows), len(self.holdout_rows)
        gib = self.column("bytes").fill_null(0).to_numpy().sum() / 2**30
        images = int(np.count_nonzero(self.images & self.usable))
        what = "videos" if not images else "images" if images == usable else "videos and images"
        lines = [f"{len(self)} {what}, {gib:.3g} GiB: {usable} usable, {len(self) - usable} bad"]
        if usable:
            lines.append(f"codecs: {counts(self.column('codec'))}" + (f"; {images} images" if images else ""))
            seconds = self.duration_s[self.usable & ~self.images]
            if len(seconds):
                low, middle, high = np.quantile(seconds, (0, 0.5, 1))
                lines.append(
                    f"length: {low:.2f} to {high:.2f} s, median {middle:.2f} s, {seconds.sum() / 3600:.2f} h in all"
                )
            few = f"fewer than {SPLIT_FROM} usable" if usable < SPLIT_FROM else "none by data.holdout and hash of path"
            why = "" if holdout else f" ({few}): health is measured on training videos"
            lines.append(f"split: {train} train, {holdout} holdout{why}")
            if cfg and (short := int(np.count_nonzero(seconds < span_s(cfg)))):
                fate = "never drawn" if cfg.short_videos == "skip" else "filled by repeating their last frame"
                lines.append(f"short: {short} usable videos last less than a clip's {span_s(cfg):.2f} s and are {fate}")
            lines += self._reading()
        if usable < len(self):
            lines.append(f"bad: {counts(self.column('reason'))}; first: {named(self, 1)}")
        if labels := [n.removeprefix(PREFIX) for n in self.table.column_names if n.startswith(PREFIX)]:
            lines.append(f"labels: {', '.join(labels)}")
        return "\n".join(lines)

    def _reading(self) -> list[str]:
        """Lines of the summary on usable videos that are read slowly, or that a full decode found damaged."""
        lines: list[str] = []
        if linear := int(np.count_nonzero(self.linear & self.usable)):
            lines.append(
                f"seeks: {linear} usable videos are read from their first packet on, as seeks in them are not exact; "
                "`rayjepa transcode` makes them fast"
            )
        damaged = self.column("damaged").filter(pa.array(self.usable)).drop_null().to_numpy()
        if len(damaged):
            hurt, packets = int(np.count_nonzero(damaged)), int(damaged.sum())
            found = f"{packets} damaged packet(s) in {hurt} of them" if hurt else "no packet is damaged"
            lines.append(f"decoded in full: {len(damaged)} usable videos, {found}")
        return lines


def span_s(cfg: DataConfig) -> float:
    """Seconds from a clip's first frame to its last; a video that is shorter has to repeat its last frame."""
    return (cfg.frames - 1) / cfg.fps


def write(manifest: Manifest, path: str | Path) -> None:
    """Write `manifest` as Parquet; the file is whole or not there.

    Raises:  OSError that names the file and the cause, if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    table = manifest.table.replace_schema_metadata({_METADATA: b"%d" % VERSION})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"cannot write manifest {path}: {error}; name a file in a folder that can be written") from error


def read(path: str | Path) -> Manifest:
    """The manifest in the Parquet file `path`.

    Raises:  ValueError if there is none, or it is of another version or has other columns.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest: {path} is not a file; make one with `rayjepa index`")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            version = (file.schema_arrow.metadata or {}).get(_METADATA, b"none").decode(errors="replace")
            if version not in (*OLD_VERSIONS, str(VERSION), "none"):
                raise ValueError(
                    f"format version {version}, and this code reads {', '.join(OLD_VERSIONS)} and {VERSION}"
                )
            table = file.read()
            if version in OLD_VERSIONS:
                table = _renewed(table, version)
            manifest = Manifest(table)  # first, so that foreign Parquet is told which columns it lacks
            if version == "none":
                raise ValueError("right columns, but no format version")
            return manifest
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise ValueError(f"{path} is not a usable manifest: {error}; make it again with `rayjepa index`") from None


def _renewed(table: pa.Table, version: str) -> pa.Table:
    """A table of an older format with the columns of this one; what it did not know is null."""
    if version == "3":
        table = table.rename_columns(["stream" if name == "source" else name for name in table.column_names])
    for field in SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def counts(column: pa.Array) -> str:
    """The five most frequent texts of a column with their counts."""
    counts = Counter({c["values"]: c["counts"] for c in column.drop_null().value_counts().to_pylist()}).most_common()
    rest = [f"and {len(counts) - 5} others"] if len(counts) > 5 else []
    return ", ".join([f"{text} ({count})" for text, count in counts[:5]] + rest)


def named(manifest: Manifest, most: int) -> str:
    """The first bad rows, each with its reason."""
    rows = np.flatnonzero(~manifest.usable)[:most]
    return ", ".join(f"{manifest.uri(r)} ({manifest.column('reason')[r].as_py()})" for r in rows.tolist())

"""What a SOURCE is: a folder, glob, list, shard or file, here or at a URL; its videos as rows in a fixed order."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from rayjepa.data.columns import SCHEMA
from rayjepa.data.index import listing
from rayjepa.data.index.cells import NO_BYTES, bytes_column
from rayjepa.data.index.endings import LISTS, SHARDS, ending, is_packed
from rayjepa.data.index.labels import PREFIX
from rayjepa.data.index.listed import LISTED, with_column
from rayjepa.data.index.lists import Named, read_list
from rayjepa.data.index.paths import FILE
from rayjepa.data.index.shards import members
from rayjepa.data.lookup import whole
from rayjepa.data.storage.faults import NotThere
from rayjepa.data.storage.ranges import opened
from rayjepa.data.storage.remote import found, is_remote, read_bytes

Expand = Callable[[pa.Table], Iterator[pa.Table]]
"""Rows of shards in, what `members` says of each out, in any order."""
log = logging.getLogger(__name__)
MANIFEST = b"rayjepa.manifest"
"""Key in the metadata of a Parquet file that is a manifest."""
_NAME = re.compile(r"([\w-]+)=(.+)", re.DOTALL)
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Videos of some sources, in the order of the manifest's rows; none has been opened yet."""

    table: pa.Table
    """Rows of LISTED, each uri once, then labels of lists and Parquet files."""
    folders: tuple[str, ...]
    """Those of the sources that are folders, where a labels.csv belongs."""

    @property
    def uris(self) -> list[str]:
        """Paths and URLs, as Python has them: for few."""
        return self.table.column("uri").to_pylist()


def list_videos(*sources: str | Path, expand: Expand | None = None, known: pa.Table | None = None) -> Listing:
    """What the sources name: sorted for a folder (recursive) or glob, in their own order for lists and shards.

    A source is NAME=SOURCE if its rows are to have that name in column `source`. Hidden files are passed over.
    `known` is a manifest's table: what it has of a shard that has not changed is taken from it, unopened.
    Raises:  ValueError, one sentence with the remedy, if a source does not exist or names no video; StorageError.
    """
    parts: list[pa.Table] = []
    folders: list[str] = []
    for source in sources:
        name, place = named(os.fspath(source))
        rows, folder = _files(place)
        rows = _expanded(rows, place, expand or _one_by_one, known, is_list=folder is None)
        if name is not None:
            field = SCHEMA.field("source")
            rows = with_column(rows, field, pa.repeat(pa.scalar(name, field.type), len(rows)))
        parts.append(rows)
        folders += [] if folder is None else [folder]
    return Listing(table=_once(_together(parts), "; ".join(str(source) for source in sources)), folders=tuple(folders))


def named(source: str) -> tuple[str | None, str]:
    """The name that a source is given, and the source; a path that exists is taken as it is."""
    match = _NAME.fullmatch(source)
    if match is None or os.path.exists(source):
        return None, source
    return match[1], match[2]


def is_manifest(source: str) -> bool:
    """Whether it is a file with a manifest, which needs no indexing."""
    place = source.removeprefix(FILE)
    if ending(place) != "parquet" or is_remote(place):
        return False
    path = Path(place).expanduser()
    if not path.is_file():
        return not listing.has_magic(place)  # that it is not there is for the reader of manifests to say
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pa.ArrowException, OSError):
        return True  # and that it is none
    return MANIFEST in (schema.metadata or {}) or {"uri", "status"} <= set(schema.names)


def _files(source: str) -> tuple[pa.Table, str | None]:
    """Rows of files and shards, and the folder that they were found in, if it was one."""
    source = source.removeprefix(FILE)
    if is_remote(source):
        return _remote_files(source)
    path = os.path.abspath(os.path.expanduser(source))
    if os.path.isdir(path):
        return listing.in_folder(path), path
    if os.path.exists(path):
        return _one_file(path, os.path.getsize(path)), None
    if listing.has_magic(source):
        return listing.in_glob(path), None
    raise ValueError(
        f"no such source: {path} does not exist; name a folder, a glob, a list ({', '.join(LISTS)}), a shard or a video"
    )


def _remote_files(url: str) -> tuple[pa.Table, str | None]:
    if url.endswith("/"):
        return listing.in_folder(url), url.rstrip("/")
    try:
        return _one_file(url, found(url).nbytes), None
    except NotThere as error:
        absent = error
    if listing.has_magic(url):
        return listing.in_glob(url), None
    try:
        return listing.in_folder(url), url
    except NotThere:
        raise absent from None


def _one_file(path: str, nbytes: int) -> pa.Table:
    kind = ending(path)
    if is_packed(path):
        raise ValueError(f"{path} is a compressed tar, in which no video has a place of its own; decompress it first")
    if kind not in LISTS or (kind == "parquet" and _is_shard(path, nbytes)):
        return listing.of_names(pa.array([path], pa.large_string()))
    content = read_bytes(path) if is_remote(path) else Path(path).read_bytes()
    names = read_list(path, pa.py_buffer(content))
    rows = listing.of_names(names.uris)
    return _labelled(rows, names)


def _is_shard(path: str, nbytes: int) -> bool:
    """Whether a Parquet file holds videos, rather than names.

    Raises:  ValueError if it is a manifest, or cannot be read.
    """
    try:
        with opened(path, nbytes) as file:
            schema: Any = pyarrow.parquet.read_schema(file)
        if MANIFEST in (schema.metadata or {}):
            raise ValueError(f"{path} is a manifest, which needs no indexing; use it as data.videos")
        return bytes_column(schema) is not None
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}; name another file") from None


def _labelled(rows: pa.Table, names: Named) -> pa.Table:
    if names.source is not None:
        rows = with_column(rows, SCHEMA.field("source"), names.source)
    for name, values in names.labels.items():
        rows = rows.append_column(name, values)
    return rows


def _expanded(rows: pa.Table, source: str, expand: Expand, known: pa.Table | None, *, is_list: bool) -> pa.Table:
    """The rows with what is in each shard in the place of the shard."""
    uris = whole(rows.column("uri"))
    is_shard = _pc.match_substring_regex(uris, rf"(?i)\.({'|'.join(SHARDS)})$")
    is_shard = _pc.and_(is_shard, rows.column("bytes").is_valid().combine_chunks())
    at = np.flatnonzero(is_shard.to_numpy(zero_copy_only=False))
    if not len(at):
        return rows
    shards = rows.take(pa.array(at))
    kept = _unchanged(shards, known)
    shards_left = (
        shards
        if kept is None
        else shards.filter(_pc.invert(_pc.is_in(shards.column("uri"), value_set=kept.column("shard").unique())))
    )
    if len(at) > 1:
        log.info("%s: %d shards, of which %d are to be opened", source, len(at), len(shards_left))
    parts = [] if kept is None else [kept]
    parts += list(expand(shards_left.select(["uri", "bytes", "modified"]))) if len(shards_left) else []
    found_in = _together(parts)
    said = [reason for reason in found_in.column("reason").drop_null().to_pylist() if is_list or NO_BYTES not in reason]
    if said:
        warnings.warn(f"{len(said)} thing(s) to say of {len(at)} shard(s), first: {said[0]}", stacklevel=4)
    found_in = found_in.filter(found_in.column("uri").is_valid()).drop_columns(["reason"])
    places = pa.array(at).take(_pc.index_in(whole(found_in.column("shard")), value_set=shards.column("uri")))
    plain = np.flatnonzero(~is_shard.to_numpy(zero_copy_only=False))
    table = _together([rows.take(pa.array(plain)), found_in])
    if not len(table):
        raise ValueError(f"{source}: {len(at)} shard(s), and no video in any" + (f"; first: {said[0]}" if said else ""))
    order = np.concatenate([plain, places.to_numpy(zero_copy_only=False)])
    return table.take(_pc.sort_indices(pa.array(order)))  # which is stable


def _unchanged(shards: pa.Table, known: pa.Table | None) -> pa.Table | None:
    """What `known` holds of shards that are as they were: all rows of one have its time or ETag of now."""
    if known is None or known.column("shard").null_count == len(known):
        return None
    rows = known.filter(known.column("shard").is_valid())
    place = _pc.index_in(whole(rows.column("shard")), value_set=whole(shards.column("uri")))
    now = whole(shards.column("modified")).take(place)
    same = _pc.fill_null(_pc.equal(whole(rows.column("modified")), now), False)
    changed = rows.column("shard").filter(_pc.invert(same)).unique()
    rows = rows.filter(_pc.and_(same, _pc.invert(_pc.is_in(rows.column("shard"), value_set=changed))))
    rows = _own_labels(rows)
    return rows.append_column("reason", pa.nulls(len(rows), pa.string())) if len(rows) else None


def _own_labels(rows: pa.Table) -> pa.Table:
    """LISTED and those labels that a shard may have had itself: a tar has none."""
    from_tar = _pc.match_substring_regex(whole(rows.column("shard")), r"(?i)\.tar$")
    table = rows.select(LISTED.names)
    for name in rows.column_names:
        if name.startswith(PREFIX):
            column = whole(rows.column(name))
            column = _pc.if_else(from_tar, pa.scalar(None, column.type), column)
            table = table.append_column(name, column) if column.null_count < len(column) else table
    return table


def _one_by_one(shards: pa.Table) -> Iterator[pa.Table]:
    for row in shards.to_pylist():
        yield members(row["uri"], row["bytes"], row["modified"])


def _together(parts: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"labels of the sources cannot stand in one manifest: {error}; give them other names"
        ) from None


def _once(table: pa.Table, sources: str) -> pa.Table:
    """The table with each uri where it comes first."""
    codes = whole(table.column("uri")).dictionary_encode().indices.to_numpy()
    before = np.maximum.accumulate(np.concatenate([[-1], codes[:-1]]))
    first = codes > before
    if first.all():
        return table
    again = int(np.flatnonzero(~first)[0])
    warnings.warn(
        f"{sources}: {int((~first).sum())} repeated line(s) or file(s) left out, first: "
        f"{table.column('uri')[again].as_py()}",
        stacklevel=3,
    )
    return table.filter(pa.array(first))

"""Files of a folder, glob or prefix, here or in remote storage, as Arrow tables: no Python object stays for a file."""

import glob
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute

from rayjepa.data.index.endings import EXTENSIONS, IMAGES, SHARDS, VIDEOS, ending, is_packed
from rayjepa.data.index.listed import LISTED, rows_of
from rayjepa.data.index.paths import REMOTE
from rayjepa.data.lookup import whole
from rayjepa.data.storage.faults import NotThere
from rayjepa.data.storage.remote import Found, found, found_below, is_remote

_CHUNK = 4096
"""Files looked at by one thread at a time."""
_LOCAL, _REMOTE = 4, 32
"""Threads that ask for sizes: a mount answers in a fraction of a millisecond, an object store in some tens."""
_MAGIC = re.compile(r"[*?[]")
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def in_folder(folder: str) -> pa.Table:
    """Visible videos, images and shards below a folder or prefix, sorted.  Rows of LISTED.

    Links to folders are followed, each folder once.
    Raises:  ValueError if there is none; StorageError.
    """
    tally = _Tally(f"folder {folder}" if not is_remote(folder) else folder)
    if is_remote(folder):
        prefix = len(folder.rstrip("/")) + 1
        visible = (one for one in found_below(folder) if not _is_hidden(one.uri[prefix:]))
        return tally.sorted(_of_objects(part) for part in _chunks(one for one in visible if tally.takes(one.uri)))
    files = ((here, [name for name in names if tally.takes(name, here)]) for here, names in _walk(folder, tally))
    return tally.sorted(_looked_at((here, names) for here, names in files if names))


def in_glob(pattern: str) -> pa.Table:
    """Videos, images and shards that a pattern names, sorted.  Rows of LISTED.

    Raises:  ValueError if there is none; StorageError.
    """
    tally = _Tally(f"glob {pattern}")
    if is_remote(pattern):
        above = pattern[: _MAGIC.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
        fits = re.compile(_as_regex(pattern))
        inside = (one for one in found_below(above) if not _is_hidden(one.uri[len(above) + 1 :]))
        objects = (one for one in inside if fits.fullmatch(one.uri) and tally.takes(one.uri))
        return tally.sorted(_of_objects(part) for part in _chunks(objects))
    paths = (path for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path) and tally.takes(path))
    return tally.sorted(_looked_at(("", part) for part in _chunks(paths)))


def has_magic(source: str) -> bool:
    """Whether it is a pattern."""
    return _MAGIC.search(source) is not None


def of_names(uris: pa.Array) -> pa.Table:
    """Rows of LISTED for these absolute paths and URLs, in their order; what cannot be found has no bytes."""
    remote = _pc.match_substring_regex(uris, REMOTE).to_numpy(zero_copy_only=False)
    parts: list[pa.Table] = []
    for kind, looked in ((False, _looked_at), (True, _asked_for)):
        rows = np.flatnonzero(remote == kind)
        if len(rows):
            names = uris.take(pa.array(rows))
            cut = (names.slice(at, _CHUNK).to_pylist() for at in range(0, len(names), _CHUNK))
            table = pa.concat_tables(looked(("", part) for part in cut))
            parts.append(table.append_column("row", pa.array(rows)))
    if len(parts) == 1:
        return parts[0].drop_columns(["row"])
    table = pa.concat_tables(parts)
    return table.take(_pc.sort_indices(table.column("row"))).drop_columns(["row"])


class _Tally:
    """What was met in a folder or glob, for the sentence that says what is missing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.others: Counter[str] = Counter()
        self.files = 0
        self.packed: list[str] = []
        self.closed: list[str] = []
        self.unnamed: list[str] = []

    def takes(self, name: str, folder: str = "") -> bool:
        """Whether a file of this name counts as a video, an image or a shard."""
        self.files += 1
        kind = ending(name)
        if kind not in EXTENSIONS and kind not in SHARDS:
            self.others[f".{kind}" if kind else "no extension"] += 1
            if is_packed(name):
                self.packed.append(name)
            return False
        path = folder + name
        if not path.isascii() and not _is_utf8(path):
            self.unnamed.append(name)
            return False
        return True

    def sorted(self, parts: Iterable[pa.Table]) -> pa.Table:
        """The parts as one table, sorted by uri, with a warning for each kind of what is left out."""
        table = pa.concat_tables([LISTED.empty_table(), *parts])
        for names, what in (
            (self.closed, "folder(s) cannot be read"),
            (self.packed, "compressed tar(s) are left out, since a video in one has no place of its own: decompress"),
            (self.unnamed, "file name(s) are not UTF-8 and were left out"),
        ):
            if names:
                warnings.warn(f"{self.name}: {len(names)} {what}, first: {names[0]!r}", stacklevel=4)
        if not len(table):
            raise ValueError(self._empty())
        return table.take(_pc.sort_indices(whole(table.column("uri"))))

    def _empty(self) -> str:
        if not self.files:
            return f"{self.name} holds no file; name one that holds videos or images"
        if self.unnamed:
            return f"{self.name}: all {len(self.unnamed)} file names are not UTF-8; rename them"
        found = ", ".join(f"{extension} ({count})" for extension, count in self.others.most_common(3))
        return (
            f"{self.name}: {self.files} file(s), none with a video extension ({' '.join(VIDEOS)}), that of an image "
            f"({' '.join(IMAGES)}) or of a shard ({' '.join(SHARDS)}); found {found}. "
            "Name other extensions in a .txt list, one path a line"
        )


def _walk(folder: str, tally: _Tally) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names of visible files in them, some thousands at a time."""
    todo, seen = [folder], set[tuple[int, int]]()  # links may lead back up
    while todo:
        here, names, below = todo.pop(), list[str](), list[str]()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        below.append(entry.path)
                        continue
                    names.append(entry.name)
                    if len(names) == _CHUNK:
                        yield here, names
                        names = []
        except OSError as error:
            tally.closed.append(f"{here}: {error.strerror}")
        if names:
            yield here, names
        todo += sorted(below, reverse=True)  # the order decides which of two links is kept


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _looked_at(parts: Iterable[tuple[str, Sequence[str]]]) -> Iterator[pa.Table]:
    """Rows of files by their folder and names; several chunks are looked at at once."""
    return _in_order(_look, parts, _LOCAL)


def _look(part: tuple[str, Sequence[str]]) -> pa.Table:
    folder, names = part
    paths = [os.path.join(folder, name) for name in names]
    facts = np.full((2, len(paths)), -1, np.int64)
    for k, path in enumerate(paths):
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # said when it is to be opened
            continue
        if stat.S_ISREG(status.st_mode):
            facts[:, k] = status.st_size, status.st_mtime_ns
    unknown = facts[0] < 0
    return rows_of(
        pa.array(paths, pa.large_string()),
        bytes=pa.array(facts[0], mask=unknown),
        modified=pa.array(facts[1], mask=unknown).cast(pa.string()),
    )


def _asked_for(parts: Iterable[tuple[str, Sequence[str]]]) -> Iterator[pa.Table]:
    """Rows of objects by their URLs; what is not there has no bytes.

    Raises:  StorageError if storage does not tell.
    """
    with ThreadPoolExecutor(_REMOTE, thread_name_prefix="list") as pool:
        for _, urls in parts:
            yield _of_objects(list(pool.map(_ask, urls)))


def _ask(url: str) -> Found:
    try:
        return found(url)
    except NotThere:
        return Found(uri=url, nbytes=-1, modified=None)


def _of_objects(objects: Sequence[Found]) -> pa.Table:
    sizes = np.array([one.nbytes for one in objects], np.int64)
    return rows_of(
        pa.array([one.uri for one in objects], pa.large_string()),
        bytes=pa.array(sizes, mask=sizes < 0),
        modified=pa.array([one.modified for one in objects], pa.string()),
    )


def _in_order(call: Any, parts: Iterable[Any], threads: int) -> Iterator[pa.Table]:
    """Results in order, of calls made a little ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="list") as pool:
        waiting = []
        for part in parts:
            waiting.append(pool.submit(call, part))
            if len(waiting) > 2 * threads:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, _CHUNK)):
        yield part


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _as_regex(pattern: str) -> str:
    """`**` for any folders, `*` and `?` and `[…]` within one."""
    parts: list[str] = []
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern):
        match piece:
            case "**/":
                parts.append("(?:.*/)?")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case _ if re.fullmatch(r"\[[^]]+\]", piece):
                parts.append(piece.replace("[!", "[^").replace("\\", "\\\\"))
            case _:
                parts.append(re.escape(piece))
    return "".join(parts)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

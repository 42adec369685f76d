"""Which rows of a manifest a stream draws from, found column by column without a Python object for each row."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from rayjepa.data.columns import equals
from rayjepa.data.lookup import Entry, whole
from rayjepa.data.video import IMAGES

Rows = dict[str | None, Int64[np.ndarray, " m"]]
"""Rising rows by the name of their source; under none, all of them or those without one."""

READ = ("split", "status", "container", "stream", "source", "duration_s")
"""Columns that decide which rows are drawn."""
CODED = ("split", "status", "container", "stream", "source")
"""Those of them that hold few different texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Usable rows of one stream and split."""

    stream: str | None
    """Name in the column `stream`; none: rows that have none."""
    split: Literal["train", "holdout"]
    images: bool
    """Whether images are drawn too."""
    least_s: float = 0.0
    """Shorter videos are not drawn."""
    by_source: bool = False
    """Each source's rows by themselves, those without a source under none; otherwise all are under none."""
    sources: tuple[str, ...] | None = None
    """Only rows of these sources; none: of all."""

    @property
    def name(self) -> str:
        """16 hex digits that differ from those of any other choice."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()

    def mask(self, table: pa.Table) -> Bool[np.ndarray, " n"]:
        """Which rows of a table with the columns READ are chosen."""
        of = {name: whole(table.column(name)) for name in READ}
        chosen = equals(of["status"], "ok") & equals(of["split"], self.split)
        chosen &= is_null(of["stream"]) if self.stream is None else equals(of["stream"], self.stream)
        if not self.images:
            chosen &= ~images(of["container"])
        if self.least_s:
            chosen &= whole(of["duration_s"]).to_numpy(zero_copy_only=False) >= self.least_s
        if self.sources is not None:
            named = [equals(of["source"], source) for source in self.sources]
            chosen &= np.any([np.zeros(len(chosen), bool), *named], axis=0)
        return chosen


@runtime_checkable
class Videos(Protocol):
    """What the tape is made of: a manifest in this process's memory, or the twin that a node's processes share."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits over what decides the tape."""
        ...

    def __len__(self) -> int: ...

    def entry(self, row: int) -> Entry:
        """What the tape needs to know of one row."""
        ...

    def chosen(self, choice: Choice) -> Rows:
        """The rows of a choice."""
        ...

    def scan(self, columns: tuple[str, ...]) -> Iterable[pa.Table]:
        """These columns of all rows in order, in pieces that fit into memory."""
        ...


def images(container: pa.Array) -> Bool[np.ndarray, " n"]:
    """Which entries of the column `container` are those of an image."""
    coded: Any = container.dictionary_encode()
    codes = [code for code, name in enumerate(coded.dictionary.to_pylist()) if name in IMAGES]
    return np.isin(coded.indices.to_numpy(zero_copy_only=False), codes)


def choose(tables: Iterable[pa.Table], choice: Choice) -> Rows:
    """The rows of a choice from all pieces of a manifest, with the columns READ."""
    parts: dict[str | None, list[Int64[np.ndarray, " m"]]] = {} if choice.by_source else {None: []}
    first = 0
    for table in tables:
        rows = np.flatnonzero(choice.mask(table))
        if not choice.by_source:
            parts[None].append(rows + first)
        elif len(rows):
            coded: Any = whole(table.column("source")).dictionary_encode()
            codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)[rows]
            names = [*coded.dictionary.to_pylist(), None]  # code -1 is the last
            for code in np.unique(codes).tolist():
                parts.setdefault(names[code], []).append(rows[codes == code] + first)
        first += len(table)
    return {name: np.concatenate(found or [np.empty(0, np.int64)]) for name, found in parts.items()}


def is_null(column: pa.Array) -> Bool[np.ndarray, " n"]:
    """Which entries of a column say nothing."""
    return column.is_null().to_numpy(zero_copy_only=False)

"""What tells one manifest from another: a hash over the columns that decide the tape."""

import hashlib
from collections.abc import Callable, Iterable

import pyarrow as pa

from rayjepa.data.columns import content
from rayjepa.data.lookup import whole

Scan = Callable[[tuple[str, ...]], Iterable[pa.Table]]
"""These columns of all rows in order, in pieces that fit into memory."""

DECISIVE = ("uri", "bytes", "duration_s", "frames", "split", "status")
LATER = ("stream", "source")
"""Decide the tape too, but older manifests had none: without values they count for nothing."""


def fingerprint(scan: Scan, rows: int) -> str:
    """32 hex digits over what decides the tape, however the rows are cut into pieces.

    Each column is read by itself, and text twice (its lengths come before its letters), so that the memory it takes is
    that of a piece.
    """
    digest = hashlib.blake2b(b"%d" % rows, digest_size=16, person=b"rayjepa.manifest")
    known = [name for name in LATER if any(t.column(name).null_count < len(t) for t in scan((name,)))]
    for name in (*DECISIVE, *known):
        part, parts = 0, 1
        while part < parts:
            for table in scan((name,)):
                pieces = content(whole(table.column(name)))
                parts = len(pieces)
                digest.update(pieces[part])
            part += 1
    return digest.hexdigest()

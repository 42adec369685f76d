"""Videos in a tar: where the bytes of each member lie."""

import tarfile

import numpy as np
import pyarrow as pa

from rayjepa.data.index.endings import EXTENSIONS, ending
from rayjepa.data.index.listed import rows_of
from rayjepa.data.index.paths import below
from rayjepa.data.storage.ranges import opened

_BLOCK = 512
"""Bytes of a tar's block."""
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and zstd."""


def in_tar(shard: str, nbytes: int, complaints: list[str]) -> pa.Table | None:
    names: list[str] = []
    places: list[tuple[int, int]] = []
    unnamed = cut = 0
    with opened(shard, nbytes) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  it would keep them all
                    if not _is_video(member):
                        continue
                    if member.offset_data + member.size > nbytes:
                        cut += 1
                    elif not member.name.isascii() and not _is_text(member.name):
                        unnamed += 1
                    else:
                        names.append(member.name)
                        places.append((member.offset_data, member.size))
                file.seek(tar.offset)
                ended = file.read(_BLOCK) == bytes(_BLOCK)
        except tarfile.TarError as error:
            if not names:
                what = "compressed" if nbytes > 2 and _is_packed(shard, nbytes) else f"no tar ({error})"
                complaints.append(f"{shard} is {what}; make it anew as an uncompressed tar")
                return None
            ended = False
    if cut or not ended:
        complaints.append(
            f"{shard} is cut short: {len(names)} video(s) before byte {nbytes} are whole, and the rest is lost; "
            "copy or make it again"
        )
    elif not names:
        complaints.append(f"{shard} holds no video or image")
    if unnamed:
        complaints.append(f"{shard}: {unnamed} name(s) in it are not UTF-8 and were left out")
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return rows_of(
        below(shard, pa.array(names, pa.large_string()), "#"), bytes=pa.array(sizes), offset=pa.array(offsets)
    )


def _is_video(member: tarfile.TarInfo) -> bool:
    name = member.name.rsplit("/", 1)[-1]
    return member.isreg() and not member.issparse() and ending(name) in EXTENSIONS and not name.startswith(".")


def _is_packed(shard: str, nbytes: int) -> bool:
    with opened(shard, nbytes) as file:
        return file.read(6).startswith(_MAGIC)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

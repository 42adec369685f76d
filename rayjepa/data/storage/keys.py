"""Where index and key frames of a large video lie, so that a clip of it takes few reads. The child imports this.

Found by what FFmpeg reads, so that it holds for any container.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

from rayjepa.data.clip import Limits
from rayjepa.data.container import demuxed, opened
from rayjepa.data.storage.paged import Paged
from rayjepa.data.storage.spans import merged

LARGE = 8 << 20
"""Smaller videos are read whole: their places are not kept."""
MOST_KEYS = 64
NEAR = 1 << 20
"""What is read in two places no further apart is one part of the index."""


def index_of(file: int | Paged, limits: Limits) -> tuple[int, int] | None:
    """Bytes from the first on, and before the end, that opening and seeking read; none: they lie all over the file."""
    source = _watched(file)
    with opened(source, limits) as video:
        if video.start is not None:
            video.container.seek(video.start, backward=True, stream=video.stream)
            next(demuxed(video.container, video.stream), None)
    parts = [*merged(source.seen, NEAR)]
    if not parts or parts[0][0] != 0 or len(parts) > 2:
        return None
    head = parts[0][1]
    tail = source.size - parts[1][0] if len(parts) == 2 else 0
    if head + tail > source.size // 2 or (tail and source.size - parts[1][1] > NEAR):
        return None
    return head, tail


def size_of(file: int | str | Paged) -> int:
    """Bytes of the video."""
    if isinstance(file, Paged):
        return file.size
    return os.stat(file).st_size


def _watched(file: int | Paged) -> Paged:
    source = file if isinstance(file, Paged) else Paged(file, size_of(file))
    source.seen.clear()
    return source


def thinned(keys: Sequence[tuple[float, int]]) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
    """Times and places of at most MOST_KEYS key frames that part all evenly; none if places do not rise with times."""
    if len(keys) < 2 or any(a[0] >= b[0] or a[1] >= b[1] for a, b in pairwise(keys)):
        return None
    steps = min(len(keys), MOST_KEYS)
    picked = [keys[k * len(keys) // steps] for k in range(steps)]
    return tuple(time for time, _ in picked), tuple(place for _, place in picked)

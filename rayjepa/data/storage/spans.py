"""Which bytes of a large video one clip is likely to need, from what its manifest knows. Standard library only."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

SLACK_S = 0.5
"""Video read beyond a clip's end: frames are stored some others late, and what follows tells that all are there."""
BEFORE = 32 << 10
"""Bytes read before a key frame: some containers lead to the head of what it lies in."""
GAP = 256 << 10
"""Ranges that are no further apart are one: these bytes take no longer than another request."""
MOST = 64 << 20
"""A clip that needs more is read as it goes."""
HEAD = 1 << 20
"""First bytes, if it is not known where the index lies."""


def spans(
    *, head: int | None, tail: int | None, key_s: Sequence[float], key_bytes: Sequence[int],
    nbytes: int, start_s: float, seconds: float,
) -> tuple[tuple[int, int], ...]:  # fmt: skip
    """Ranges [first, last): the index, and from the key frame before the clip to the one after its end.

    From byte key_bytes[k] on lie the frames from key_s[k] seconds after the first; bytes [0, head) and the last `tail`
    hold the index. Without key frames the first bytes alone; a hint, so what it leaves out is read when it is missed.
    Units:   nbytes of the video; the clip begins at start_s and takes `seconds`.
    """
    if head is None or not key_s:
        return merged([(0, min(HEAD, nbytes))])
    first = key_bytes[max(0, bisect_right(key_s, start_s) - 1)] - BEFORE
    after = bisect_right(key_s, start_s + seconds + SLACK_S)
    last = key_bytes[after] + GAP if after < len(key_s) else nbytes
    wanted = [(0, head), (nbytes - (tail or 0), nbytes)]
    if last - first <= MOST:
        wanted.append((first, last))
    return merged([(max(0, low), min(high, nbytes)) for low, high in wanted])


def merged(ranges: Iterable[tuple[int, int]], gap: int = GAP) -> tuple[tuple[int, int], ...]:
    """The ranges in order, those that overlap or nearly touch as one."""
    done: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if first >= last:
            continue
        if done and first <= done[-1][1] + gap:
            done[-1] = (done[-1][0], max(done[-1][1], last))
        else:
            done.append((first, last))
    return tuple(done)

"""A video that is wanted, and what is handed on once its bytes are here, or can be had."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rayjepa.data.clip import Place
from rayjepa.data.storage.remote import Remote, is_remote
from rayjepa.data.storage.spans import merged


class Wanted(NamedTuple):
    """A video whose bytes are to be had."""

    uri: str
    place: Place | None
    whole: int
    """Bytes up to which it is read whole."""

    @property
    def file(self) -> str:
        return self.place.file if self.place else self.uri

    @property
    def at_first(self) -> int:
        """Bytes that are fetched before a child can begin; at most, if they are not known."""
        if self.place is None or self.place.nbytes <= self.whole:
            return self.place.nbytes if self.place else self.whole
        return sum(last - first for first, last in self.place.spans)

    @property
    def is_far(self) -> bool:
        """Whether it takes time to have it: a thread of its own gets it."""
        return is_remote(self.file) or (self.place is not None and self.place.cell is not None)


@dataclass(slots=True, kw_only=True)
class Opened:
    """Bytes of a video that are here, or can be had."""

    fd: int
    nbytes: int
    paged: dict[str, Any] | None = None
    """What the child is told if it is not simply a file: `size`, `base` and `here` of a Paged."""
    remote: Remote | None = None
    """Where what is missed comes from."""
    base: int = 0
    """First byte of the video there."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.remote is not None:
            self.remote.close()
            self.remote = None


def wanted_of(uri: str, places: Sequence[Place | None], whole: int) -> Wanted:
    """One video for several clips: what one of them is likely to need is fetched."""
    first = places[0] if places else None
    if first is None or not any(place is not None and place.spans for place in places):
        return Wanted(uri, first, whole)
    spans = merged(span for place in places if place is not None for span in place.spans)
    return Wanted(uri, first._replace(spans=spans), whole)

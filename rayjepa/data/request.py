"""What the decoder's child is asked: clips of one video, or one question about a file; and how long it may take."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from rayjepa.data.clip import ClipSpec, Place
from rayjepa.data.memory import Memory
from rayjepa.data.storage.wanted import Opened, Wanted, wanted_of

MOST_CLIPS = 16
"""Clips in one request: they share a deadline."""
PROBED_WHOLE = 256 << 20
"""Remote videos up to here are read whole when all of their packets are wanted; larger ones piece by piece."""
MESSAGE_CLIPS = 8
"""Clips from which on a message is full: each message costs both sides 0.1 ms, most of it in waking the other."""

# What the deadline of one clip buys of other work. Whole files of noise and of texture in nine codecs, lossless ones
# and 4:4:4 among them, took a fifth to a thirtieth of what these four sum up to; ordinary ones take a tenth.
PROBED_BYTES = 1 << 30
"""File demuxed by a probe: at the default deadlines of 20 s of CPU and 120 s, a mount may give 9 MB/s."""
DECODED_PIXELS = 600e6
"""Pixels decoded: 33 ns of CPU each at the default."""
DECODED_FRAMES = 10_000
"""Frames decoded: 2 ms of CPU each at the default, whatever their size."""
DECODED_BYTES = 40 << 20
"""Bytes decoded: 0.5 s of CPU per MiB at the default. Above some 50 Mbit/s the entropy coder sets the pace."""
ENCODED_PIXELS = 20e6
"""Pixels encoded: 1 us of CPU each at the default, for x264's slowest preset."""
LINEAR_S = 10.0
"""Video decoded up to a clip whose file is read from the first packet on: 2 s of CPU per second at the default."""


@dataclass(slots=True, kw_only=True)
class Request:
    """One thing to get from the child, and how often it was tried."""

    do: Literal["clips", "probe", "verify", "transcode"]
    uri: str
    place: Place | None = None
    """Where the file of a question lies, if not at `uri`; a spec knows its own."""
    specs: tuple[ClipSpec, ...] = ()
    """Of one video, for rows `row`, `row` + 1 ... of the batch."""
    row: int = 0
    memory: Memory | None = None
    """Where the batch lies."""
    stride: int = 0
    """Bytes from one row of the batch to the next."""
    work: float = 0.0
    """What is to be decoded and encoded, in deadlines of a clip; what demuxing takes comes on top."""
    out: int | None = None
    """Descriptor that a transcoded video is written to."""
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else the child is told."""
    tries: int = 0
    not_before: float = 0.0
    opened: Opened | None = field(default=None, init=False)
    """Its bytes while the child works on it, if more of them may have to be fetched."""
    nbytes: int = field(default=0, init=False)
    """Bytes of the video, once it was opened."""
    is_cut_off: bool = field(default=False, init=False)
    """Bytes that the child asked for could not be had, in all of data.read_tries."""
    _wanted: Wanted | None = field(default=None, init=False)

    def wanted(self, whole: int) -> Wanted:
        """What is to be opened for it; for clips it is read whole up to `whole` bytes."""
        if self._wanted is None:
            places = [spec.place for spec in self.specs] or [self.place]
            self._wanted = wanted_of(self.uri, places, whole if self.do == "clips" else PROBED_WHOLE)
        return self._wanted

    def release(self) -> None:
        """Close what was kept open for it."""
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    def clips(self) -> "list[Request]":
        """The request for each clip alone; a question is its own."""
        if len(self.specs) < 2:
            return [self]
        return [
            Request(do="clips", uri=self.uri, specs=(spec,), row=self.row + k, memory=self.memory, stride=self.stride)
            for k, spec in enumerate(self.specs)
        ]

    def told(self, poison: str | None, paged: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the child is told: all of the specs that it needs, and not where the file is."""
        if self.do != "clips":
            return {"do": self.do, "poison": poison, "paged": paged, **self.more}
        return {
            "do": "clips",
            "poison": poison,
            "paged": paged,
            "begin": self.row * self.stride,
            "stride": self.stride,
            "clips": [_told(spec) for spec in self.specs],
        }

    def deadlines(self, file_bytes: int) -> float:
        """How many times the deadlines of one clip this may take."""
        if self.do == "clips":
            return sum(1 + _linear_s(spec) / LINEAR_S for spec in self.specs)
        return 1 + file_bytes / PROBED_BYTES + self.work


def grouped(specs: Iterable[ClipSpec], memory: Memory | None = None, stride: int = 0) -> Iterator[Request]:
    """Adjacent specs of one video as one request each, at most MOST_CLIPS of them."""
    row = 0
    for uri, neighbours in groupby(specs, key=lambda spec: spec.uri):
        group = tuple(neighbours)
        for first in range(0, len(group), MOST_CLIPS):
            part = group[first : first + MOST_CLIPS]
            yield Request(do="clips", uri=uri, specs=part, row=row, memory=memory, stride=stride)
            row += len(part)


def decoding(frames: int, frame_pixels: int, file_bytes: int) -> float:
    """Deadlines of a clip that decoding a whole file may take: far above what an honest one needs."""
    return frames / DECODED_FRAMES + frames * frame_pixels / DECODED_PIXELS + file_bytes / DECODED_BYTES


def encoding(frames: int, width: int, height: int, short_px: int) -> float:
    """Deadlines of a clip that encoding frames at that short side may take."""
    shrunk = min(1.0, short_px / max(1, min(width, height)))
    return frames * width * height * shrunk**2 / ENCODED_PIXELS


def _linear_s(spec: ClipSpec) -> float:
    return spec.start_s + spec.frames / spec.fps if spec.seek == "linear" else 0.0


def _told(spec: ClipSpec) -> dict[str, Any]:
    """By hand: dataclasses.asdict would take longer than all else that is done for a clip here."""
    window = spec.window
    return {
        "start_s": spec.start_s,
        "frames": spec.frames,
        "fps": spec.fps,
        "pixels": spec.pixels,
        "seek": spec.seek,
        "window": {
            "kind": window.kind,
            "size_px": window.size_px,
            "long_px": window.long_px,
            "scale": window.scale,
            "aspect": window.aspect,
            "seed": window.seed,
        },
    }

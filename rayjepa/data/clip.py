"""What one sample is, before any pixel is read. Standard library only: the decoder's child imports this."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Pixels = Literal["i420", "rgb"]
Seek = Literal["planned", "linear"]
"""How a clip is read: from the key frame before it, or, where seeks are not exact, from the first packet on."""
MATRICES = ("bt601", "bt709", "bt2020")
"""Luma weights that an I420 frame may have been made with, in the order of `Layout.matrix`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What decode ships of a frame: one random-resized crop, drawn from `seed` alone once the frame's size is known, or
    the whole frame, from which the device draws its views (multi-crop recipes).
    """

    kind: Literal["crop", "whole"] = "crop"
    size_px: int
    """`crop`: side of the square that is shipped. `whole`: short side of the canvas. In pixels, even."""
    long_px: int | None = None
    """`whole`: long side of the canvas in pixels, even; none: it is a square."""
    scale: tuple[float, float]
    """Share of the frame's area, lowest and highest; (1, 1) with aspect (1, 1) is the largest centred square."""
    aspect: tuple[float, float]
    """Width over height, lowest and highest."""
    seed: int
    """64-bit seed of the draw; -1: the largest centred square (evaluation)."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width in pixels of what is shipped: a square, or short by long side."""
        return self.size_px, self.long_px or self.size_px


class Layout(NamedTuple):
    """How one clip lies in the bytes that were shipped, and which colours they stand for; one int32 row of a batch.

    The content fills the canvas from its upper left corner; what lies beyond is black. A portrait frame is shipped
    transposed (rows and columns exchanged), so that one canvas fits all.
    """

    matrix: int
    """Place in MATRICES; bt601 if the file does not say, as swscale has it."""
    full_range: int
    """1: luma 0 to 255 (JPEG); 0: 16 to 235."""
    height: int
    """Rows of the canvas that hold content."""
    width: int
    """Columns of the canvas that hold content."""
    transposed: int
    """1: content is the transposed frame."""


class Place(NamedTuple):
    """Where the bytes of one video lie, as its manifest knows it."""

    file: str
    """Path or URL of the file that holds them: the video's own, or a shard of many (tar, Parquet)."""
    nbytes: int
    """How many they are; where the file has others by now, it is not the one that was indexed."""
    offset: int | None = None
    """First byte in a shard; none: the whole file."""
    cell: str | None = None
    """COLUMN/ROW of a Parquet shard whose values do not lie there as they are (compressed); `offset` is none then."""
    spans: tuple[tuple[int, int], ...] = ()
    """Ranges [first, last) of these bytes, counted from their first, that reading the clip is likely to need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one file, or one clip of it, may ask of a decoder before it is given up."""

    file_bytes: int = 64 << 30
    frame_pixels: int = 4096 * 2304
    """DCI 4K and a little; a header that claims more is damage or an attack."""
    video_s: float = 24 * 3600.0
    packets: int = 4096
    """Packets held for one clip: two minutes of video, far above any sane group of pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """One sample of the run, fixed by (seed, manifest, index, attempt)."""

    index: int
    """Sample index in the run; held-out clips count from 0 in a list of their own."""
    attempt: int
    """0, or n for the n-th substitute of a sample that could not be decoded."""
    stream: str
    """Homogeneous source of samples this one belongs to."""
    video: int
    """Row of the manifest."""
    uri: str
    start_s: float
    """Start of the clip in seconds of video time, from the first frame."""
    frames: int
    fps: float
    window: Window
    pixels: Pixels
    seek: Seek = "planned"
    """What the manifest knows of the file; `linear` where a check at index time found that seeks are not exact."""
    flip: bool
    mask_seed: int
    """64-bit seed of this sample's mask."""
    view_seed: int
    """64-bit seed of what is drawn on the device."""
    place: Place | None = None
    """Where the video's bytes lie; none: they are the file that `uri` names, whatever its size."""

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded clip: frames x height x width of the canvas x 3 (rgb) or x 3/2 (i420)."""
        height, width = self.window.canvas
        area = self.frames * height * width
        return area * 3 if self.pixels == "rgb" else area * 3 // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt at one sample gave no clip: a row of the quarantine and of the checkpoint's ledger."""

    index: int
    attempt: int
    video: int
    uri: str
    stage: Literal["open", "demux", "decode", "convert", "child"]
    """Where it failed; `child`: the process died or ran past a deadline."""
    kind: Literal["content", "io", "deadline", "crash"]
    """`content` is substituted at once; the others first use up data.retries."""
    reason: str

"""What is said of one video file: that it is readable, and what it holds, or why not. Standard library only."""

import os
from dataclasses import dataclass
from typing import Literal

from rayjepa.data.clip import Seek

IMAGES = {
    "jpeg_pipe": (b"\xff\xd8\xff", 0, "mjpeg"),
    "png_pipe": (b"\x89PNG\r\n", 0, "png"),
    "webp_pipe": (b"WEBP", 8, "webp"),
}
"""FFmpeg's names of the demuxers that read an image: what its file has, at which byte, and its one allowed decoder.

So no TIFF, BMP, GIF, JPEG 2000 or JPEG XL; HEIC and AVIF are pictures in mp4, which are passed over.
"""
Stage = Literal["open", "demux", "decode", "convert"]
Kind = Literal["content", "io"]


class BadVideo(Exception):
    """Why a file gives no clip: the stage, whether its content or its reading is at fault, a reason in plain words."""

    def __init__(self, stage: Stage, reason: str, kind: Kind = "content") -> None:
        super().__init__(reason)
        self.stage: Stage = stage
        self.reason = reason
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one look at a video says: every packet demuxed, one frame decoded."""

    container: str
    """FFmpeg's name of the demuxer, such as "mov,mp4,m4a,3gp,3g2,mj2"."""
    codec: str
    width: int
    """Width in pixels as coded, before rotation."""
    height: int
    rotation: int
    """Degrees counterclockwise from coded to displayed: 0, 90, 180 or 270."""
    fps: float
    """Displayed frames per second, on average."""
    duration_s: float
    """From the first displayed frame to the end of the last."""
    frames: int
    """Frames that are displayed (packets outside an edit list's pre-roll)."""
    start_pts: int
    """Time stamp of the first displayed frame, in units of `time_base`."""
    time_base: tuple[int, int]
    """Seconds per unit, as numerator and denominator."""
    pix_fmt: str
    seek: Seek
    """`linear` where a clip is read from the first packet on, because a seek could end elsewhere."""
    damaged: int | None = None
    """Packets that a full decode refused; none: it was not fully decoded."""
    head: int | None = None
    """Of a large video whose seeks are exact: bytes from the first on that opening and seeking read; else none."""
    tail: int | None = None
    """Likewise, bytes before its end."""
    key_s: tuple[float, ...] | None = None
    """Likewise, when key frames are displayed, in seconds after the first frame; the MOST_KEYS that part it evenly."""
    key_bytes: tuple[int, ...] | None = None
    """Where these key frames lie in the file."""


def open_file(path: str) -> int:
    """A descriptor of the file; the caller closes it.

    Raises:  BadVideo of kind io: a file that the manifest names should be there.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # non-blocking: a FIFO must not stop us
    except OSError as error:
        raise BadVideo("open", error.strerror or str(error), "io") from error

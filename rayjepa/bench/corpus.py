"""The videos that decoding is measured on: codec x size x distance of key frames, each made when first asked for."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.video.stream import VideoStream

from rayjepa.bench.picture import FPS, frames

VERSION = 1
"""Of the content: any change of what is drawn or how it is encoded raises it, and so makes a new folder."""
SMALL = "96p"
"""Size of the videos that `soak` reads."""
SIZES = {SMALL: (160, 96), "256p": (456, 256), "360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
"""Width and height in pixels."""
BITS = {SMALL: 100_000, "256p": 400_000, "360p": 750_000, "720p": 2_500_000, "1080p": 5_000_000}
"""Bits per second of H.264; what video sites send."""
SECONDS = {SMALL: 4, "256p": 20, "360p": 20, "720p": 15, "1080p": 15}
GOPS = (12, 60, 250)
"""Most frames from one key frame to the next; a cut brings one too, as the encoders have it by default."""
THREADS = 2
"""Of the encoder: fixed, since their number changes the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How the files of one codec are written."""

    encoder: str
    options: dict[str, str]
    suffix: str = ".mp4"
    bits: float = 1.0
    """Bit rate over that of H.264, for pictures about as good."""


CODECS = {
    "h264": Codec(encoder="libx264", options={"preset": "veryfast", "bf": "3"}),
    "hevc": Codec(
        encoder="libx265",
        options={"preset": "veryfast", "x265-params": "bframes=3:log-level=error:pools=2:frame-threads=2"},
        bits=0.7,
    ),
    "vp9": Codec(encoder="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, suffix=".webm", bits=0.8),
    "av1": Codec(encoder="libsvtav1", options={"preset": "10", "svtav1-params": "lp=2"}, bits=0.7),
    "mpeg4": Codec(encoder="mpeg4", options={"bf": "2"}, bits=1.6),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One file of the corpus."""

    codec: str
    size: str
    gop: int

    @property
    def name(self) -> str:
        """What the command line calls it, such as h264-360p-g60."""
        return f"{self.codec}-{self.size}-g{self.gop}"

    @property
    def seconds(self) -> int:
        return SECONDS[self.size]

    def path(self, cache: str | Path) -> Path:
        """Where it lies, made or not."""
        return Path(cache).expanduser() / "bench" / f"v{VERSION}" / (self.name + CODECS[self.codec].suffix)


ALL = tuple(Cell(codec, size, gop) for codec in CODECS for size in SIZES if size != SMALL for gop in GOPS)


def chosen(words: str | None) -> list[Cell]:
    """The cells that comma-separated names or patterns (`h264-*`) pick, in the order of ALL; none: all.

    Raises:  ValueError for a word that picks nothing.
    """
    patterns = [word.strip() for word in words.split(",") if word.strip()] if words else ["*"]
    for pattern in patterns:
        if not any(fnmatch(cell.name, pattern) for cell in ALL):
            raise ValueError(
                f"--cells: no cell is called {pattern!r}; a name is CODEC-SIZE-gGOP, of {', '.join(CODECS)} x "
                f"{', '.join(list(SIZES)[1:])} x {', '.join(f'g{gop}' for gop in GOPS)}, and * stands for anything"
            )
    return [cell for cell in ALL if any(fnmatch(cell.name, pattern) for pattern in patterns)]


def made(cell: Cell, cache: str | Path) -> Path:
    """The file of a cell, written on the first call.

    Raises:  OSError that names the folder if it cannot be written.
    """
    path = cell.path(cache)
    if path.is_file():
        return path
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            encode(temporary, cell)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}; set data.cache to another folder") from error
    return path


def encode(path: Path, cell: Cell) -> None:
    """Write the file of a cell. Files of one size show the same frames, so that their costs compare."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 writes pages to stderr by itself
    codec, (width, height) = CODECS[cell.codec], SIZES[cell.size]
    faststart = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=faststart) as container:
        options = {"g": str(cell.gop), **codec.options}
        stream = cast("VideoStream", container.add_stream(codec.encoder, rate=FPS, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = int(BITS[cell.size] * codec.bits)
        stream.codec_context.thread_count = THREADS
        seed = list(SIZES).index(cell.size)
        for n, frame in enumerate(frames(width, height, cell.seconds * FPS, seed=seed)):
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a made cell holds."""

    bytes: int
    frames: int
    keys: int
    """Key frames."""


def inspected(path: Path) -> File:
    """Packets of a file counted, none decoded."""
    with av.open(str(path)) as container:
        packets: Sequence[bool] = [p.is_keyframe for p in container.demux(video=0) if p.size]
    return File(bytes=path.stat().st_size, frames=len(packets), keys=sum(packets))

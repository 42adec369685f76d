"""Damaged copies of small videos, one for each number: what found files do to a decoder, many times over.

Copy n is a pure function of (seed, n) and of the videos that it is cut from; these are made anew on each machine, of
every codec and container that clips come in, and their bytes may change with the encoders' versions.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, assert_never, cast, get_args

import av
import numpy as np
from av.video.stream import VideoStream

Damage = Literal["flip", "truncate", "splice", "zero", "duplicate", "swap", "header"]
DAMAGES: tuple[Damage, ...] = get_args(Damage)

WIDTH, HEIGHT, FPS, FRAMES = 96, 64, 24, 48
"""Of the videos: two seconds, small enough that thousands of copies take a minute."""
BOXES = re.compile(
    rb"ftyp|moov|moof|mdat|trak|traf|mdia|minf|stbl|stsd|stts|ctts|stss|stsc|stsz|stco|trun|tfhd|edts|elst|mvhd|tkhd"
    rb"|mdhd|hdlr|avcC|hvcC|av1C|vpcC|esds"
)
"""What mp4 is made of: each of these words follows four bytes of size."""
SIZES = (0, 1, 7, 8, 16, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Sizes of a box that readers have stumbled over."""
HEAD = 1024
"""Bytes at the start of other containers that say what follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A codec in a container, and how it is written."""

    name: str
    encoder: str
    suffix: str
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict[str, str])
    container: dict[str, str] = field(default_factory=dict[str, str])


_X264 = {"preset": "veryfast", "bf": "2", "threads": "1"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=2"}
_VPX = {"deadline": "realtime", "cpu-used": "8"}
_AV1 = {"preset": "12", "svtav1-params": "lp=1"}
_FAST = {"movflags": "+faststart"}

FORMATS = (
    Format(name="h264-mp4", encoder="libx264", suffix=".mp4", options=_X264, container=_FAST),
    Format(name="h264-late", encoder="libx264", suffix=".mp4", options=_X264),  # the index lies at the end
    Format(
        name="h264-parts",
        encoder="libx264",
        suffix=".mp4",
        options=_X264,
        container={"movflags": "frag_keyframe+empty_moov"},
    ),
    Format(name="h264-10bit", encoder="libx264", suffix=".mp4", pixels="yuv420p10le", options=_X264, container=_FAST),
    Format(name="h264-mkv", encoder="libx264", suffix=".mkv", options=_X264),
    Format(name="h264-ts", encoder="libx264", suffix=".ts", options=_X264),
    Format(name="h264-flv", encoder="libx264", suffix=".flv", options=_X264),
    Format(name="hevc-mp4", encoder="libx265", suffix=".mp4", options=_X265, container=_FAST),
    Format(name="hevc-mkv", encoder="libx265", suffix=".mkv", options=_X265),
    Format(name="vp8-webm", encoder="libvpx", suffix=".webm", options=_VPX),
    Format(name="vp9-webm", encoder="libvpx-vp9", suffix=".webm", options=_VPX),
    Format(name="vp9-mp4", encoder="libvpx-vp9", suffix=".mp4", options=_VPX, container=_FAST),
    Format(name="av1-mp4", encoder="libsvtav1", suffix=".mp4", options=_AV1, container=_FAST),
    Format(name="av1-mkv", encoder="libsvtav1", suffix=".mkv", options=_AV1),
    Format(name="mpeg4-mp4", encoder="mpeg4", suffix=".mp4", options={"bf": "2"}, container=_FAST),
    Format(name="mpeg4-avi", encoder="mpeg4", suffix=".avi"),
    Format(name="mpeg2-ts", encoder="mpeg2video", suffix=".ts", options={"bf": "2"}),
    Format(name="mpeg2-mpg", encoder="mpeg2video", suffix=".mpg"),
    Format(name="mjpeg-mov", encoder="mjpeg", suffix=".mov", pixels="yuvj420p"),
    Format(name="prores-mov", encoder="prores_ks", suffix=".mov", pixels="yuv422p10le"),
    Format(name="ffv1-mkv", encoder="ffv1", suffix=".mkv"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One damaged copy."""

    number: int
    format: str
    damage: Damage
    suffix: str
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """Of its file, such as 000017-vp9-webm-splice.webm."""
        return f"{self.number:06d}-{self.format}-{self.damage}{self.suffix}"


def make_corpus(folder: Path) -> dict[str, Path]:
    """One sound video of each format in `folder`, by name."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 writes pages to stderr by itself
    folder.mkdir(parents=True, exist_ok=True)
    paths = {form.name: folder / f"{form.name}{form.suffix}" for form in FORMATS}
    for form in FORMATS:
        _encode(paths[form.name], form)
    return paths


def copy(number: int, *, seed: int, corpus: Mapping[str, bytes]) -> Copy:
    """Damaged copy `number` of the set `seed`: formats and damages come in turn, each of all pairs equally often."""
    form = FORMATS[number % len(FORMATS)]
    damage = DAMAGES[number // len(FORMATS) % len(DAMAGES)]
    draw = np.random.default_rng([seed, number])
    other = corpus[FORMATS[int(draw.integers(len(FORMATS)))].name]
    data = damaged(corpus[form.name], damage, other=other, draw=draw)
    return Copy(number=number, format=form.name, damage=damage, suffix=form.suffix, data=data)


def damaged(data: bytes, damage: Damage, *, other: bytes, draw: np.random.Generator) -> bytes:
    """`data`, harmed in one way; `other` is what a splice goes on with."""
    size = len(data)
    match damage:
        case "flip":  # from one byte to one in fifty, small numbers as often as large ones
            count = int(np.exp(draw.uniform(0, np.log(size / 50 + 2))))
            return _flipped(data, draw.integers(0, size, count), draw)
        case "truncate":
            return data[: int(draw.integers(1, size))]
        case "splice":
            return data[: int(draw.integers(1, size))] + other[int(draw.integers(0, len(other))) :]
        case "zero":
            first, length = _range(size, draw)
            return data[:first] + bytes(length) + data[first + length :]
        case "duplicate":
            first, length = _range(size, draw)
            return data[: first + length] + data[first:]
        case "swap":
            length = int(draw.integers(1, size // 4))
            first = int(draw.integers(0, size - 2 * length))
            second = int(draw.integers(first + length, size - length + 1))
            a, b = data[first : first + length], data[second : second + length]
            return data[:first] + b + data[first + length : second] + a + data[second + length :]
        case "header":
            return _with_bad_header(data, draw)
        case _ as unreachable:
            assert_never(unreachable)


def _with_bad_header(data: bytes, draw: np.random.Generator) -> bytes:
    """A box of mp4 with another size, or another content; elsewhere a few other bytes at the start."""
    boxes = [found.start() for found in BOXES.finditer(data)] if data[4:8] in (b"ftyp", b"moov", b"wide") else []
    if not boxes:
        return _flipped(data, draw.integers(0, min(HEAD, len(data)), int(draw.integers(1, 9))), draw)
    at = boxes[int(draw.integers(len(boxes)))]
    if draw.random() < 0.5:
        content = at + 4 + draw.integers(0, 64, int(draw.integers(1, 5)))
        return _flipped(data, content[content < len(data)], draw)
    old = int.from_bytes(data[at - 4 : at], "big")
    near = (old + int(draw.integers(-64, 65))) % (1 << 32)
    size = int(draw.choice([*SIZES, near, near, near]))
    return data[: at - 4] + size.to_bytes(4, "big") + data[at:]


def _flipped(data: bytes, at: np.ndarray, draw: np.random.Generator) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    changed[at] ^= draw.integers(1, 256, len(at)).astype(np.uint8)
    return changed.tobytes()


def _range(size: int, draw: np.random.Generator) -> tuple[int, int]:
    """Start and length of a piece of at most a quarter; short ones as often as long ones."""
    length = int(np.exp(draw.uniform(0, np.log(size / 4))))
    return int(draw.integers(0, size - length)), length


def _encode(path: Path, form: Format) -> None:
    """Two seconds of texture that moves, of which no two frames are alike."""
    texture = np.random.default_rng(7).integers(40, 210, (24, 32, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    with av.open(str(path), "w", options=form.container) as container:
        stream = cast("VideoStream", container.add_stream(form.encoder, rate=FPS, options={"g": "12", **form.options}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, form.pixels
        stream.codec_context.thread_count = 1
        for number in range(FRAMES):
            top, left = number % 48, 2 * number % 80
            picture = np.ascontiguousarray(texture[top : top + HEIGHT, left : left + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form.pixels)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

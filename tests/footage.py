"""Small videos whose every frame carries its number, for the tests of decoding."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from rayjepa.data.clip import ClipSpec, Window

BITS = 8
SIZE = 64
"""Side of the squares that `clip_spec` asks for."""
SQUARE = 16
WIDTH, HEIGHT, FPS = BITS * SQUARE, 80, 24


def make_video(
    path: Path,
    *,
    frames: int = 60,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    vfr: bool = False,
    late_s: float = 0.0,
    ticks: int = 100,
) -> Path:
    """A moving texture with the frame's number as light and dark squares along its upper edge.

    Units:   `ticks` is the number of time units per frame; encoders of fixed frame rates need 1.
    """
    width, height = size
    texture = np.random.default_rng(0).integers(60, 190, (30, 30, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    unit = Fraction(1, FPS * ticks)
    pts = int(late_s / unit)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=FPS, options={"g": "12", "bf": "2", "threads": "1", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = unit
        for number in range(frames):
            picture = np.ascontiguousarray(texture[number % 60 :][:height, 2 * number % 60 :][:, :width])
            for bit in range(BITS):
                picture[:SQUARE, SQUARE * bit : SQUARE * (bit + 1)] = 235 if number >> bit & 1 else 16
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = pts, unit
            pts += ticks * (4 if vfr and number % 5 == 0 else 1)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def clip_spec(**fields: object) -> ClipSpec:
    """Six frames at 8 per second of a random crop, but for `fields`."""
    window = Window(size_px=SIZE, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=1)
    plain = ClipSpec(
        index=0, attempt=0, stream="test", video=0, uri="", start_s=0.0, frames=6, fps=8.0,
        window=window, pixels="i420", flip=False, mask_seed=0, view_seed=0,
    )  # fmt: skip
    return replace(plain, **fields)


def number_in(luma: NDArray[np.uint8]) -> int:
    """The number painted on a frame, from its luma at the original size."""
    squares = luma[4:12].reshape(8, BITS, SQUARE)[:, :, 4:12].mean((0, 2))
    return sum(1 << bit for bit, light in enumerate(squares) if light > 125)


def bad_video(folder: Path, kind: str, good: Path) -> Path:
    """One of the ways in which a file is no video, made from a good mp4."""
    path = folder / f"{kind}.mp4"
    data = good.read_bytes()
    match kind:
        case "zero byte":
            path.touch()
        case "text":
            path.write_text("this is no video\n" * 500)
        case "truncated":
            path.write_bytes(data[: len(data) * 6 // 10])
        case "flipped":
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[48 : len(data) * 3 // 4] ^= 0x5A
            path.write_bytes(damaged.tobytes())
        case "audio only":
            with av.open(str(path), "w") as file:
                stream = file.add_stream("aac", rate=8000)
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate = 8000
                file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
        case _:
            raise ValueError(kind)
    return path


def heavy_video(path: Path, *, frames: int = 96, container: dict[str, str] | None = None) -> Path:
    """Noise of 120 KB a frame with a key frame each second: large, and made quickly."""
    width, height = 640, 360
    noise = np.random.default_rng(0).integers(0, 128, (7, height, width), dtype=np.uint8)
    options = {"preset": "ultrafast", "qp": "26", "g": str(FPS), "bf": "2", "sc_threshold": "0", "threads": "1"}
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame(width, height, "yuv420p")
            luma = np.roll(noise[number % 7], number, 1) + np.uint8(number)
            padded = np.zeros((height, frame.planes[0].line_size), np.uint8)
            padded[:, :width] = luma
            for plane, content in zip(frame.planes, (padded.tobytes(), None, None), strict=True):
                plane.update(content or bytes([128]) * plane.buffer_size)
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path

"""Image files for tests: JPEG and WebP by PyAV's encoders, PNG of any kind by hand."""

import struct
import zlib
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 96
COLOUR_TYPES = {"grey": 0, "rgb": 2, "palette": 3, "grey alpha": 4, "rgba": 6}
PALETTE = np.array([(220, 30, 30), (20, 150, 40), (30, 50, 220), (235, 225, 30)], np.uint8)


def picture() -> NDArray[np.uint8]:
    """Slopes in red and blue with a light square in the upper left corner, so that each way up differs."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made = np.stack([columns * 200 // WIDTH, np.full_like(rows, 90), rows * 200 // HEIGHT], axis=-1).astype(np.uint8)
    made[4:20, 4:20] = 240
    return made


def png(pixels: NDArray[np.integer], kind: str = "rgb", *, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 8 or 16 bits, by the array's dtype; `size` is what its header claims, if not the truth."""
    height, width = size or pixels.shape[:2]
    depth = 16 if pixels.dtype.itemsize == 2 else 8
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[kind], 0, 0, 0))]
    if kind == "palette":
        chunks.append((b"PLTE", PALETTE.tobytes()))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def encoded(pixels: NDArray[np.uint8], codec: str, pix_fmt: str, path: Path) -> bytes:
    """The file of one picture that an encoder of FFmpeg makes; `path` is where it is written meanwhile."""
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as file:
        stream = file.add_stream(codec, rate=1, options={"qmin": "1", "qmax": "1"} if codec == "mjpeg" else {})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], pix_fmt
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


def turned(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an Exif tag that says which way up it is."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]

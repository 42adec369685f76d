"""Synthetic videos: one shape that bounces over a textured background, with labels that say where it is at any time.

They are the data of the shipped demo and of tests. What a representation ought to hold (which shape, which colour,
where, how fast) is known exactly, so that probes have a ceiling.
"""

import csv
import io
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, UInt8

VERSION = 1
"""Of the content: any change of what `make` draws or writes raises it, and so makes new folders."""

SIZE_PX = 96
FPS = 24
GOP = 16
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {  # R, G, B; none is near the grey of the background
    "red": (220, 30, 30),
    "green": (20, 150, 40),
    "blue": (30, 50, 220),
    "yellow": (235, 225, 30),
    "cyan": (40, 220, 225),
    "magenta": (215, 40, 200),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
}
_MARKER = "complete.json"
_YUV = np.array([[0.257, 0.504, 0.098], [-0.148, -0.291, 0.439], [0.439, -0.368, -0.071]])  # BT.601, studio range


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What is true of one synthetic video; a row of labels.csv.

    Units:   lengths are shares of the frame's side, x to the right and y down from the top left corner.
    """

    identity: str
    """One of `SHAPES`."""
    colour: str
    """One of `COLOURS`."""
    x: float
    """Centre at t = 0."""
    y: float
    vx: float
    """Velocity at t = 0, in sides per second; its size is kept for ever, its sign changes at each wall."""
    vy: float
    radius: float
    """Half of the shape's side: the centre stays between `radius` and 1 - `radius`."""
    duration_s: float
    """Length of the video."""


def labels_of(seed: int, i: int) -> Labels:
    """Labels of video `i` of the set `seed`; a pure function."""
    draw = np.random.default_rng([VERSION, seed, i])
    radius = float(draw.uniform(0.10, 0.18))
    x, y = draw.uniform(radius, 1 - radius, 2)
    angle, speed = draw.uniform(0, 2 * np.pi), draw.uniform(0.15, 0.6)
    return Labels(
        identity=SHAPES[draw.integers(len(SHAPES))],
        colour=tuple(COLOURS)[draw.integers(len(COLOURS))],
        x=float(x),
        y=float(y),
        vx=float(speed * np.cos(angle)),
        vy=float(speed * np.sin(angle)),
        radius=radius,
        duration_s=int(draw.integers(4 * FPS, 6 * FPS + 1)) / FPS,
    )


def position(labels: Labels, t: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 2"]:
    """Centre (x, y) of the shape at each of the times `t`: straight flight between walls, mirrored at each.

    Units:   `t` in seconds from the first frame, of any sign; the result in sides of the frame.
    """
    start, velocity = np.array([labels.x, labels.y]), np.array([labels.vx, labels.vy])
    room = 1 - 2 * labels.radius
    travelled = start - labels.radius + np.multiply.outer(t, velocity)
    phase = np.mod(travelled, 2 * room)  # the unfolded path has the period of one way there and back
    return labels.radius + room - np.abs(phase - room)


def make(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder below `folder` with `count` videos and their labels.csv, written on the first call.

    Its name holds version, seed and count, so sets never mix; what an interrupted call has left is kept and completed.
    Encoding runs outside the interpreter's lock: `processes` are threads, none: one for each CPU we may use.
    Raises:  ValueError if `count` is under 1; OSError that names the folder if it cannot be written.
    """
    if count < 1:
        raise ValueError(f"synthetic videos: count={count} must be at least 1")
    home = Path(folder).expanduser() / f"synthetic-v{VERSION}-seed{seed}-{count}"
    if (home / _MARKER).is_file():
        return home

    def write_video(i: int) -> None:
        with _whole(home / _name(i)) as path:
            encode(path, seed, i)

    try:
        home.mkdir(parents=True, exist_ok=True)
        lacking = [i for i in range(count) if not (home / _name(i)).exists()]
        with ThreadPoolExecutor(processes or len(os.sched_getaffinity(0))) as pool:
            try:
                for done, _ in enumerate(pool.map(write_video, lacking), 1):
                    if progress:
                        progress(count - len(lacking) + done, count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        with _whole(home / "labels.csv") as path:
            path.write_text(_table([labels_of(seed, i) for i in range(count)]))
        with _whole(home / _MARKER) as path:
            path.write_text(json.dumps({"version": VERSION, "seed": seed, "count": count}))
    except OSError as error:
        raise OSError(f"cannot write synthetic videos to {home}: {error}; set data.cache to another folder") from error
    return home


def encode(path: Path, seed: int, i: int) -> None:
    """Write video `i` of the set `seed`: H.264 in a faststart mp4, `SIZE_PX` square, a key frame each `GOP`."""
    frames = draw(labels_of(seed, i), texture=np.random.default_rng([VERSION, seed, i, 1]))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = {"preset": "superfast", "crf": "20", "g": str(GOP)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIZE_PX
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more would change the bytes with the machine
        for n, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def draw(labels: Labels, *, texture: np.random.Generator) -> UInt8[np.ndarray, "T rows columns"]:
    """Frames of a video as planar YUV 4:2:0: `SIZE_PX` rows of Y, then a quarter as many each of U and V."""
    centres = position(labels, np.arange(round(labels.duration_s * FPS)) / FPS)
    y, u, v = _YUV @ np.array(COLOURS[labels.colour], float) + (16, 128, 128)
    half = SIZE_PX // 2
    luma = _painted(120 + _noise(SIZE_PX, (20.0, 12.0, 6.0), texture), y, labels, centres)
    chroma = [_painted(128 + _noise(half, (8.0, 4.0, 0.0), texture), c, labels, centres) for c in (u, v)]
    planes = [plane.reshape(len(centres), -1, SIZE_PX) for plane in (luma, *chroma)]
    return np.concatenate(planes, axis=1)


def _noise(
    side: int, amplitudes: tuple[float, float, float], texture: np.random.Generator
) -> Float[np.ndarray, "side side"]:
    """Smooth texture of a plane: three grids of random numbers, interpolated; amplitudes from coarse to fine."""
    total = np.zeros((side, side))
    for cells, amplitude in zip((5, 13, 41), amplitudes, strict=True):
        at = np.linspace(0, cells - 1, side)[:, None]
        weights = np.clip(1 - np.abs(at - np.arange(cells)), 0, 1)
        total += weights @ texture.uniform(-amplitude, amplitude, (cells, cells)) @ weights.T
    return total


def _painted(
    background: Float[np.ndarray, "side side"], value: float, labels: Labels, centres: Float[np.ndarray, "T 2"]
) -> UInt8[np.ndarray, "T side side"]:
    """One plane of every frame, the shape over it, with an edge one pixel soft. Only a patch around it is computed."""
    side, radius = len(background), labels.radius * len(background)
    patch = np.arange(min(side, 2 * int(np.ceil(radius)) + 3))
    x, y = (centres * side).T[..., None]
    columns = np.clip(np.floor(x) - len(patch) // 2, 0, side - len(patch)).astype(np.int64) + patch
    rows = np.clip(np.floor(y) - len(patch) // 2, 0, side - len(patch)).astype(np.int64) + patch
    outside = _distance(labels.identity, (columns + 0.5 - x)[:, None, :], (rows + 0.5 - y)[:, :, None], radius)
    cover = np.clip(0.5 - outside, 0, 1)
    at = (np.arange(len(centres))[:, None, None], rows[:, :, None], columns[:, None, :])
    plane = np.repeat(background[None], len(centres), axis=0)
    plane[at] = plane[at] * (1 - cover) + value * cover
    return np.rint(plane).astype(np.uint8)


def _distance(
    identity: str, x: Float[np.ndarray, "T 1 P"], y: Float[np.ndarray, "T P 1"], radius: float
) -> Float[np.ndarray, "T P P"]:
    """Distance to the shape's edge, negative inside; each shape fills the square from -`radius` to `radius`."""
    match identity:
        case "circle":
            return np.hypot(x, y) - radius
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - radius
        case "triangle":
            return np.maximum(y - radius, (2 * np.abs(x) - y - radius) / np.sqrt(5))
        case "cross":
            wide, tall = np.maximum(np.abs(x), 3 * np.abs(y)), np.maximum(3 * np.abs(x), np.abs(y))
            return np.minimum(wide, tall) - radius
        case _:
            raise ValueError(f"no shape {identity!r}; one of {', '.join(SHAPES)}")


def _name(i: int) -> str:
    return f"{i:06d}.mp4"


def _table(labels: Sequence[Labels]) -> str:
    text = io.StringIO()
    rows = csv.DictWriter(text, ["file", *(f.name for f in fields(Labels))], lineterminator="\n")
    rows.writeheader()
    rows.writerows({"file": _name(i), **asdict(label)} for i, label in enumerate(labels))
    return text.getvalue()


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` at the end if nothing was raised: all of it, or none."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Moving pictures that cost a decoder what real ones do: texture, pan and zoom, sprites, grain, a cut now and then."""

from collections.abc import Iterator

import av
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

FPS = 30
CUT_S = 5.0
"""Seconds from one cut to the next."""
MARGIN = 1.5
"""Sides of the texture over those of the frame: room for the window to pan and zoom in."""
SPRITES = 6
GRAIN = 2.0
"""Standard deviation of the luma noise of a frame, in grey levels: a good camera by daylight."""

Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""Y, U and V; the last two at half the rows and columns."""


def frames(width: int, height: int, count: int, *, seed: int) -> Iterator[av.VideoFrame]:
    """`count` frames of yuv420p; a pure function of the arguments. Width and height are even."""
    grain = np.random.default_rng([seed, 0]).normal(0, GRAIN, (height + 64, width + 64)).round().astype(np.int16)
    per_scene = round(CUT_S * FPS)
    for first in range(0, count, per_scene):
        draw = np.random.default_rng([seed, 1 + first // per_scene])
        yield from _scene(width, height, min(per_scene, count - first), grain, draw)


def _scene(
    width: int, height: int, count: int, grain: NDArray[np.int16], draw: np.random.Generator
) -> Iterator[av.VideoFrame]:
    """The frames between two cuts."""
    background = _texture(_even(width * MARGIN), _even(height * MARGIN), draw)
    side = _even(height / 5)
    sprites = [_texture(side, side, draw) for _ in range(SPRITES)]
    places, speeds = draw.uniform(0, 1, (SPRITES, 2)), draw.uniform(-0.5, 0.5, (SPRITES, 2))
    start, pan, zoom = draw.uniform(0, 1, 2), draw.uniform(-0.08, 0.08, 2), draw.uniform(-0.1, 0.1)
    for n in range(count):
        second = n / FPS
        scale = 1.15 + zoom * np.sin(second)
        window = _even(width * scale), _even(height * scale)
        planes = _window(background, window, _bounce(start + pan * second), width, height)
        for sprite, place in zip(sprites, _bounce(places + speeds * second), strict=True):
            _paste(planes, sprite, place)
        down, across = draw.integers(64, size=2)
        noisy = planes[0] + grain[down : down + height, across : across + width]
        planes[0][...] = np.clip(noisy, 0, 255)
        yield av.VideoFrame.from_ndarray(_packed(planes), format="yuv420p")


def _texture(width: int, height: int, draw: np.random.Generator) -> Planes:
    """Noise whose power falls as in photographs (amplitude 1/f)."""

    def plane(w: int, h: int, mean: float, spread: float) -> NDArray[np.uint8]:
        across, down = np.fft.rfftfreq(w)[None, :] * w / h, np.fft.fftfreq(h)[:, None]
        amplitude = 1 / np.maximum(np.hypot(across, down), 1 / h)
        waves = amplitude * np.exp(2j * np.pi * draw.uniform(size=amplitude.shape))
        values: Float[np.ndarray, "rows columns"] = np.fft.irfft2(waves, s=(h, w))
        return np.clip(mean + spread * values / values.std(), 16, 235).astype(np.uint8)

    return (
        plane(width, height, 120.0, 45.0),
        plane(width // 2, height // 2, 128.0, 18.0),
        plane(width // 2, height // 2, 128.0, 18.0),
    )


def _window(planes: Planes, window: tuple[int, int], place: Float[np.ndarray, " 2"], width: int, height: int) -> Planes:
    """The part of the texture that a window shows, scaled to the frame."""
    w, h = window
    y = _even((planes[0].shape[0] - h) * place[0], least=0)
    x = _even((planes[0].shape[1] - w) * place[1], least=0)
    part = (
        planes[0][y : y + h, x : x + w],
        planes[1][y // 2 : (y + h) // 2, x // 2 : (x + w) // 2],
        planes[2][y // 2 : (y + h) // 2, x // 2 : (x + w) // 2],
    )
    frame = av.VideoFrame.from_ndarray(_packed(part), format="yuv420p")
    scaled = frame.reformat(width=width, height=height, interpolation="BILINEAR", threads=1).to_ndarray()
    assert scaled.dtype == np.uint8
    scaled = scaled.astype(np.uint8, copy=False)
    chroma = scaled[height:].reshape(2, height // 2, width // 2)
    return scaled[:height], chroma[0], chroma[1]


def _paste(planes: Planes, sprite: Planes, place: Float[np.ndarray, " 2"]) -> None:
    rows, columns = planes[0].shape
    side = sprite[0].shape[0]
    y, x = _even((rows - side) * place[0], least=0), _even((columns - side) * place[1], least=0)
    planes[0][y : y + side, x : x + side] = sprite[0]
    for plane, patch in zip(planes[1:], sprite[1:], strict=True):
        plane[y // 2 : (y + side) // 2, x // 2 : (x + side) // 2] = patch


def _bounce(at: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """A straight flight between the walls 0 and 1."""
    return 1 - np.abs(np.mod(at, 2) - 1)


def _packed(planes: Planes) -> UInt8[np.ndarray, "rows columns"]:
    """The three planes as PyAV wants them: below each other, as wide as Y."""
    height, width = planes[0].shape
    flat = np.concatenate([plane.reshape(-1) for plane in planes])
    return flat.reshape(height * 3 // 2, width)


def _even(value: float, least: int = 2) -> int:
    return max(int(value) & ~1, least)

import dataclasses

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation

from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Pixels, Window
from rayjepa.views import MEAN, STD, to_views

SIZE, FRAMES = 64, 3


def spec(pixels: Pixels, *, flip: bool = False) -> ClipSpec:
    return ClipSpec(
        index=0, attempt=0, stream="videos", video=0, uri="v", start_s=0.0, frames=FRAMES, fps=4.0,
        window=Window(size_px=SIZE, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1), pixels=pixels, flip=flip,
        mask_seed=0, view_seed=0,
    )  # fmt: skip


def batch(rows: list[np.ndarray], specs: list[ClipSpec]) -> ClipBatch:
    pixels = torch.stack([torch.as_tensor(row.reshape(-1)) for row in rows])
    return ClipBatch(index=torch.arange(len(rows)), pixels=pixels, specs=tuple(specs))


def picture(seed: int) -> np.ndarray:
    """A saturated colour wheel with a grey square: frames (T, H, W, 3) uint8."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    phase = np.arange(3) * 2 * np.pi / 3
    frames = [127.5 + 127.5 * np.sin(2 * np.pi * (x + y * (t + 1))[..., None] + phase + seed) for t in range(FRAMES)]
    clip = np.stack(frames).round().astype(np.uint8)
    clip[:, 16:32, 16:32] = 90
    return clip


def planes(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """I420 bytes of `clip`, and the RGB that swscale makes of them with chroma interpolated (by default it is not)."""
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    yuv = [av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p") for frame in clip]
    rgb = [frame.reformat(format="rgb24", interpolation=exact).to_ndarray() for frame in yuv]
    return np.stack([frame.to_ndarray() for frame in yuv]), np.stack(rgb)


def grey_levels(views: torch.Tensor) -> np.ndarray:
    """(B, 3, T, H, W) normalised to (B, T, H, W, 3) in [0, 255]."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((views.permute(0, 2, 3, 4, 1) * std + mean) * 255).numpy()


def test_i420_becomes_the_rgb_that_swscale_makes() -> None:
    (first, expected), (second, expected_second) = planes(picture(0)), planes(picture(1))
    views = to_views(batch([first, second], [spec("i420")] * 2), device="cpu")
    assert views.shape == (2, 3, FRAMES, SIZE, SIZE)
    assert views.dtype == torch.float32
    difference = np.abs(grey_levels(views) - np.stack((expected, expected_second)))
    assert difference.mean() < 0.5  # swscale rounds to whole levels


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((81, 90, 240), (254, 0, 0)),
        ((255, 128, 128), (255, 255, 255)),
    ],
)
def test_flat_colours_are_those_of_bt601_in_limited_range(yuv: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    frame = np.repeat(np.array(yuv, dtype=np.uint8), (SIZE**2, SIZE**2 // 4, SIZE**2 // 4))
    clip = np.tile(frame, FRAMES)
    levels = grey_levels(to_views(batch([clip], [spec("i420")]), device="cpu"))
    np.testing.assert_allclose(levels, np.broadcast_to(np.array(rgb, dtype=float), levels.shape), atol=1)


def test_packed_rgb_is_only_normalised() -> None:
    clip = picture(2)
    levels = grey_levels(to_views(batch([clip], [spec("rgb")]), device="cpu"))
    np.testing.assert_allclose(levels[0], clip, atol=1e-3)


@pytest.mark.parametrize("pixels", ["i420", "rgb"])
def test_a_flip_mirrors_the_clips_it_names_and_no_other(pixels: Pixels) -> None:
    clip = picture(3) if pixels == "rgb" else planes(picture(3))[0]
    plain, flipped = to_views(batch([clip, clip], [spec(pixels), spec(pixels, flip=True)]), device="cpu")
    torch.testing.assert_close(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


def test_clips_of_two_shapes_in_one_batch_are_our_mistake() -> None:
    clip = picture(4)
    other = dataclasses.replace(spec("rgb"), frames=FRAMES + 1)
    with pytest.raises(AssertionError, match="one shape"):
        to_views(batch([clip, clip], [spec("rgb"), other]), device="cpu")

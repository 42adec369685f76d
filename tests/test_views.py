"""What was shipped as it is: colours, flips and colour jitter. Crops on the device are in test_crops.py."""

import colorsys
import dataclasses
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from av import VideoFrame
from av.filter import Graph
from made_clips import square

from rayjepa.config import RunConfig, ViewsConfig, resolve
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import MATRICES, ClipSpec, Layout, Pixels, Window
from rayjepa.views import MEAN, STD, to_views

SIZE, FRAMES = 64, 3
SPACES = {"bt601": 5, "bt709": 1, "bt2020": 9}
"""FFmpeg's AVColorSpace."""
RUN = resolve("tiny", {"data.size_px": SIZE})


def spec(pixels: Pixels, *, flip: bool = False, seed: int = 5, view_seed: int = 0) -> ClipSpec:
    return ClipSpec(
        index=0, attempt=0, stream="videos", video=0, uri="v", start_s=0.0, frames=FRAMES, fps=4.0,
        window=Window(size_px=SIZE, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=seed), pixels=pixels, flip=flip,
        mask_seed=0, view_seed=view_seed,
    )  # fmt: skip


def batch(rows: list[np.ndarray], specs: list[ClipSpec], layout: torch.Tensor | None = None) -> ClipBatch:
    pixels = torch.stack([torch.as_tensor(row.reshape(-1)) for row in rows])
    layout = square(specs) if layout is None else layout
    return ClipBatch(index=torch.arange(len(rows)), pixels=pixels, layout=layout, specs=tuple(specs))


def picture(seed: int) -> np.ndarray:
    """A saturated colour wheel with a grey square: frames (T, H, W, 3) uint8."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    phase = np.arange(3) * 2 * np.pi / 3
    frames = [127.5 + 127.5 * np.sin(2 * np.pi * (x + y * (t + 1))[..., None] + phase + seed) for t in range(FRAMES)]
    clip = np.stack(frames).round().astype(np.uint8)
    clip[:, 16:32, 16:32] = 90
    return clip


def planes(clip: np.ndarray) -> np.ndarray:
    """I420 bytes of `clip`."""
    return np.stack([VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p").to_ndarray() for frame in clip])


def swscale(clip: np.ndarray, *, matrix: str = "bt601", full_range: bool = False) -> np.ndarray:
    """RGB that libavfilter's `scale` makes of I420, as exactly as it can with a bilinear kernel for the chroma."""
    graph = Graph()
    graph.threads = 1
    nodes = [
        graph.add("buffer", video_size=f"{SIZE}x{SIZE}", pix_fmt="yuv420p", time_base="1/1", pixel_aspect="1/1",
                  colorspace=str(SPACES[matrix]), range="2" if full_range else "1"),
        graph.add("scale", f"{SIZE}:{SIZE}:flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]  # fmt: skip
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    made = []
    for image in clip:
        frame = VideoFrame.from_ndarray(image, "yuv420p")
        frame.colorspace, frame.color_range = SPACES[matrix], 2 if full_range else 1
        nodes[0].push(frame)
        made.append(nodes[-1].pull().to_ndarray())
    return np.stack(made)


def grey_levels(views: torch.Tensor) -> np.ndarray:
    """(B, 3, T, H, W) normalised to (B, T, H, W, 3) in [0, 255]."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((views.permute(0, 2, 3, 4, 1) * std + mean) * 255).numpy()


def jittering(**kinds: float) -> RunConfig:
    return dataclasses.replace(RUN, views=ViewsConfig(**kinds))


def test_i420_becomes_swscales_rgb_within_a_level_in_every_matrix_and_range_of_a_mixed_batch() -> None:
    """Of noise, at every pixel: edges and clipped colours too. swscale itself rounds to whole levels."""
    kinds, draw = list(product(range(3), range(2))), np.random.default_rng(0)
    clips = [draw.integers(16, 241, (FRAMES, SIZE * 3 // 2, SIZE), dtype=np.uint8) for _ in kinds]
    layout = torch.tensor([Layout(matrix, full, SIZE, SIZE, 0) for matrix, full in kinds], dtype=torch.int32)
    found = grey_levels(to_views(batch(clips, [spec("i420")] * len(kinds), layout), RUN, device="cpu"))
    for levels, clip, (matrix, full) in zip(found, clips, kinds, strict=True):
        expected = swscale(clip, matrix=MATRICES[matrix], full_range=bool(full))
        assert ((expected == 0) | (expected == 255)).mean() > 0.1
        assert np.abs(levels - expected).max() < 0.6, (MATRICES[matrix], full)


@pytest.mark.parametrize(
    ("matrix", "full", "yuv", "rgb"),
    [
        (0, 0, (16, 128, 128), (0, 0, 0)),
        (0, 0, (235, 128, 128), (255, 255, 255)),
        (0, 0, (81, 90, 240), (254, 0, 0)),
        (0, 0, (255, 128, 128), (255, 255, 255)),
        (0, 1, (76, 85, 255), (254, 0, 0)),
        (1, 0, (63, 102, 240), (255, 0, 0)),
        (1, 1, (182, 30, 12), (0, 255, 1)),
        (2, 0, (29, 240, 119), (0, 0, 255)),
        (2, 1, (128, 128, 128), (128, 128, 128)),
    ],
)
def test_flat_colours_are_those_of_the_standard(
    matrix: int, full: int, yuv: tuple[int, ...], rgb: tuple[int, ...]
) -> None:
    frame = np.repeat(np.array(yuv, dtype=np.uint8), (SIZE**2, SIZE**2 // 4, SIZE**2 // 4))
    layout = torch.tensor([Layout(matrix, full, SIZE, SIZE, 0)], dtype=torch.int32)
    views = to_views(batch([np.tile(frame, FRAMES)], [spec("i420")], layout), RUN, device="cpu")
    levels = grey_levels(views)
    np.testing.assert_allclose(levels, np.broadcast_to(np.array(rgb, dtype=float), levels.shape), atol=1.5)


def test_packed_rgb_is_only_normalised() -> None:
    clip = picture(2)
    views = to_views(batch([clip], [spec("rgb")]), RUN, device="cpu")
    assert views.dtype == torch.float32
    assert views.shape == (1, 3, FRAMES, SIZE, SIZE)
    np.testing.assert_allclose(grey_levels(views)[0], clip, atol=1e-3)


@pytest.mark.parametrize("pixels", ["i420", "rgb"])
def test_a_flip_mirrors_the_clips_it_names_and_no_other(pixels: Pixels) -> None:
    clip = picture(3) if pixels == "rgb" else planes(picture(3))
    plain, flipped = to_views(batch([clip, clip], [spec(pixels), spec(pixels, flip=True)]), RUN, device="cpu")
    torch.testing.assert_close(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


def test_clips_of_two_shapes_in_one_batch_are_our_mistake() -> None:
    clip = picture(4)
    other = dataclasses.replace(spec("rgb"), frames=FRAMES + 1)
    with pytest.raises(AssertionError, match="one shape"):
        to_views(batch([clip, clip], [spec("rgb"), other]), RUN, device="cpu")


def grey(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.2989, 0.587, 0.114])


def blended(x: np.ndarray, with_: np.ndarray, ratio: float) -> np.ndarray:
    return np.clip(ratio * x + (1 - ratio) * with_, 0, 1)


def turned(x: np.ndarray, turn: float) -> np.ndarray:
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3).tolist()]
    return np.array([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in flat]).reshape(x.shape)


def reference(x: np.ndarray, kind: str, value: float) -> np.ndarray:
    """`x` (T, H, W, 3) in [0, 1] as torchvision defines adjust_brightness, _contrast, _saturation and _hue."""
    match kind:
        case "brightness":
            return np.clip(x * value, 0, 1)
        case "contrast":
            return blended(x, grey(x).mean((1, 2))[:, None, None, None], value)
        case "saturation":
            return blended(x, grey(x)[..., None], value)
        case _:
            return turned(x, value)


def best(x: np.ndarray, jittered: np.ndarray, kind: str, low: float, high: float) -> float:
    """The factor in [low, high] that explains the jitter best, found without knowing how it is drawn."""
    for _ in range(8):  # a grid that zooms in
        grid = np.linspace(low, high, 9)
        errors = [np.abs(reference(x, kind, float(value)) - jittered).mean() for value in grid]
        middle, width = float(grid[int(np.argmin(errors))]), (high - low) / 4
        low, high = middle - width, middle + width
    return (low + high) / 2


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("brightness", 0.2, 1.8), ("contrast", 0.2, 1.8), ("saturation", 0.2, 1.8), ("hue", -0.2, 0.2)],
)
def test_each_kind_of_jitter_is_torchvisions_with_one_factor_for_the_whole_clip(
    kind: str, low: float, high: float
) -> None:
    clips = [picture(i)[:, ::8, ::8] for i in range(2)]
    small = [dataclasses.replace(spec("rgb", view_seed=i), window=window(8)) for i in range(2)]
    strength = {kind: (high - low) / 2}
    found = grey_levels(to_views(batch(clips, small), jittering(**strength), device="cpu")) / 255
    values = []
    for clip, levels in zip(clips, found, strict=True):
        x = clip / 255.0
        values.append(best(x, levels, kind, low, high))
        np.testing.assert_allclose(levels, reference(x, kind, values[-1]), atol=2e-3)
        assert not np.allclose(levels, x, atol=0.01)
    assert values[0] != pytest.approx(values[1], abs=0.01)


def window(size: int) -> Window:
    return Window(size_px=size, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=5)


def test_kinds_of_jitter_are_applied_in_the_order_of_their_names_in_the_configuration() -> None:
    clip, sharp = [picture(5)[:, ::8, ::8]], [dataclasses.replace(spec("rgb", view_seed=9), window=window(8))]
    both = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
    x = clip[0] / 255.0
    for kind, strength in both.items():
        low, high = (-strength, strength) if kind == "hue" else (1 - strength, 1 + strength)
        alone = grey_levels(to_views(batch(clip, sharp), jittering(**{kind: strength}), device="cpu"))[0] / 255
        x = reference(x, kind, best(clip[0] / 255.0, alone, kind, low, high))
    found = grey_levels(to_views(batch(clip, sharp), jittering(**both), device="cpu"))[0] / 255
    np.testing.assert_allclose(found, x, atol=0.01)


def test_jitter_is_keyed_by_the_view_seed_alone() -> None:
    clip, run = picture(6), jittering(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    one = spec("rgb", view_seed=1)
    moved = dataclasses.replace(one, index=77, attempt=3, uri="other", mask_seed=9, video=4)
    views = to_views(batch([clip] * 3, [one, spec("rgb", view_seed=2), moved]), run, device="cpu")
    torch.testing.assert_close(views[0], views[2], rtol=0, atol=0)
    assert not torch.allclose(views[0], views[1], atol=0.05)
    (alone,) = to_views(batch([clip], [one]), run, device="cpu")
    torch.testing.assert_close(alone, views[0])


def test_a_clip_for_evaluation_is_never_jittered() -> None:
    clip = planes(picture(7))
    run = jittering(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    plain = to_views(batch([clip], [spec("i420")]), RUN, device="cpu")
    still = to_views(batch([clip], [spec("i420", seed=-1)]), run, device="cpu")
    torch.testing.assert_close(still, plain, rtol=0, atol=1e-4)

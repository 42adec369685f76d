"""Crops and sizes on the device, against PyTorch's antialiased interpolation of the cut-out picture."""

import dataclasses
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayjepa.config import ViewsConfig, resolve
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Layout, Pixels, Window
from rayjepa.views import MEAN, STD, Crop, crops, render, to_views
from rayjepa.views.batch import canvas, numbers
from rayjepa.views.colour import Jitter
from rayjepa.views.draw import drawn

FRAMES, SHORT, LONG, SIZE = 2, 48, 80, 32
RUN = resolve("tiny", {"data.size_px": SIZE, "data.window": "whole", "data.whole_px": [SHORT, LONG]})
SHAPES = [(SHORT, LONG), (SHORT, SHORT), (LONG, SHORT), (30, LONG), (LONG, 22)]
"""Displayed height and width: those of the canvas, a square, a portrait, and two that touch the canvas's end."""
WIDE = (0.1, 1.0)


def spec(index: int, pixels: Pixels = "i420", *, seed: int = 5, flip: bool = False) -> ClipSpec:
    window = Window(kind="whole", size_px=SHORT, long_px=LONG, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=seed)
    return ClipSpec(
        index=index, attempt=0, stream="videos", video=0, uri="v", start_s=0.0, frames=FRAMES, fps=4.0,
        window=window, pixels=pixels, flip=flip, mask_seed=0, view_seed=1000 + index,
    )  # fmt: skip


def displayed(index: int, pixels: Pixels) -> tuple[Tensor, ...]:
    """Planes of a clip as it is displayed, (T, h, w) uint8 in mid grey, so that no colour is cut off."""
    height, width = SHAPES[index % len(SHAPES)]
    draw = torch.Generator().manual_seed(index)
    if pixels == "rgb":
        return tuple(torch.randint(64, 192, (FRAMES, height, width), generator=draw).byte() for _ in range(3))
    luma = torch.randint(80, 160, (FRAMES, height, width), generator=draw).byte()
    u, v = (torch.randint(116, 141, (FRAMES, height // 2, width // 2), generator=draw).byte() for _ in range(2))
    return luma, u, v


def shipped(planes: tuple[Tensor, ...], pixels: Pixels, *, beyond: int) -> tuple[Tensor, Layout]:
    """Bytes on the canvas, transposed if portrait, with any byte `beyond` the content; and the layout."""
    height, width = planes[0].shape[1:]
    turned = height > width
    canvases = []
    for plane in planes:
        content, half = plane.mT if turned else plane, 2 if plane.shape != planes[0].shape else 1
        canvas = torch.full((FRAMES, SHORT // half, LONG // half), beyond, dtype=torch.uint8)
        canvas[:, : content.shape[1], : content.shape[2]] = content
        canvases.append(canvas)
    flat = torch.stack(canvases, dim=-1) if pixels == "rgb" else torch.cat([c.flatten(1) for c in canvases], dim=1)
    rows, columns = (width, height) if turned else (height, width)
    return flat.flatten(), Layout(1, 0, rows, columns, int(turned))


def batch(specs: list[ClipSpec], *, beyond: int = 0) -> ClipBatch:
    rows = [shipped(displayed(s.index, s.pixels), s.pixels, beyond=beyond) for s in specs]
    return ClipBatch(
        index=torch.arange(len(specs)),
        pixels=torch.stack([pixels for pixels, _ in rows]),
        layout=torch.tensor([layout for _, layout in rows], dtype=torch.int32),
        specs=tuple(specs),
    )


def colours(planes: tuple[Tensor, ...], pixels: Pixels) -> Tensor:
    """The displayed picture (3, T, h, w) in [0, 1]; I420 is BT.709 in limited range, its chroma bilinear."""
    if pixels == "rgb":
        return torch.stack(planes).double() / 255
    y, *chroma = (plane.double() for plane in planes)
    u, v = (F.interpolate(c[None], scale_factor=2, mode="bilinear")[0] - 128 for c in chroma)
    y = (y - 16) / 219
    r, b = y + 1.5748 * v / 224, y + 1.8556 * u / 224
    return torch.stack((r, (y - 0.2126 * r - 0.0722 * b) / 0.7152, b))


def reference(one: ClipSpec, crop: Crop, *, flip: bool) -> Tensor:
    """The crop of one clip, cut out of the displayed picture and interpolated by PyTorch."""
    planes = displayed(one.index, one.pixels)
    _, layout = shipped(planes, one.pixels, beyond=0)
    x, y, w, h = drawn(one, layout, crop).box
    if layout.transposed:
        x, y, w, h = y, x, h, w
    cut = colours(planes, one.pixels)[:, :, y : y + h, x : x + w]
    size = (crop.size_px, crop.size_px)
    made = F.interpolate(cut, size, mode=crop.kernel, antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(c).view(3, 1, 1, 1) for c in (MEAN, STD))
    return ((made.flip(-1) if flip else made) - mean).div(std).float()


@pytest.mark.parametrize(
    ("pixels", "kernel", "size"), list(product(["i420", "rgb"], ["bilinear", "bicubic"], [14, SIZE, 64]))
)
def test_crops_are_pytorchs_antialiased_interpolation_of_the_cut_out_picture(
    pixels: Pixels, kernel: Literal["bilinear", "bicubic"], size: int
) -> None:
    """Shrinking and enlarging, landscape and portrait, mirrored or not, in one batch; bytes beyond play no part."""
    specs = [spec(i, pixels) for i in range(2 * len(SHAPES))]
    crop = Crop(number=3, size_px=size, scale=WIDE, aspect=(0.5, 2.0), flip=0.5, kernel=kernel)
    filled = batch(specs, beyond=255)
    (found,) = crops(filled, [crop], device="cpu")
    assert found.shape == (len(specs), 3, FRAMES, size, size)
    draws = [drawn(s, Layout(*row), crop) for s, row in zip(specs, filled.layout.tolist(), strict=True)]
    assert {draw.flip for draw in draws} == {0.0, 1.0}
    expected = torch.stack([reference(s, crop, flip=bool(d.flip)) for s, d in zip(specs, draws, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 / min(STD))


def test_the_training_view_of_whole_frames_is_crop_0_of_the_windows_law_flipped_as_the_spec_says() -> None:
    specs = [spec(i, flip=i % 2 == 0) for i in range(4)]
    views = to_views(batch(specs), RUN, device="cpu")
    crop = Crop(number=0, size_px=SIZE, scale=(0.3, 1.0), aspect=(0.75, 1.35))
    expected = torch.stack([reference(s, crop, flip=s.flip) for s in specs])
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-4 / min(STD))


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_a_clip_for_evaluation_shows_the_largest_centred_square_without_jitter(index: int) -> None:
    run = dataclasses.replace(RUN, views=ViewsConfig(brightness=1.0, hue=0.5))
    one = spec(index, "rgb", seed=-1)
    planes = displayed(index, "rgb")
    height, width = planes[0].shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2 // 2 * 2, (width - side) // 2 // 2 * 2  # crops begin at even pixels
    cut = colours(planes, "rgb")[:, :, top : top + side, left : left + side]
    expected = F.interpolate(cut, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1).float()
    (found,) = to_views(batch([one]), run, device="cpu")
    mean, std = (torch.tensor(c).view(3, 1, 1, 1) for c in (MEAN, STD))
    torch.testing.assert_close(found * std + mean, expected, rtol=0, atol=1e-4)


def test_a_view_depends_on_its_clip_and_spec_alone() -> None:
    run = dataclasses.replace(RUN, views=ViewsConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1))
    specs = [spec(i) for i in range(5)]
    together = to_views(batch(specs), run, device="cpu")
    back = to_views(batch(specs[::-1]), run, device="cpu")
    torch.testing.assert_close(back.flip(0), together)
    for i, one in enumerate(specs):
        (alone,) = to_views(batch([one]), run, device="cpu")
        torch.testing.assert_close(alone, together[i])


def test_a_list_of_crops_keeps_its_order_and_each_is_what_it_is_alone() -> None:
    clips = batch([spec(i) for i in range(3)])
    jitter = ViewsConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    small = [
        Crop(number=n, size_px=16, scale=(0.05, 0.4), aspect=(0.75, 1.35), flip=0.5, colour=jitter) for n in (4, 2, 9)
    ]
    large = Crop(number=0, size_px=SIZE, scale=(0.8, 1.0), aspect=(0.75, 1.35))
    wanted = [small[0], large, small[1], dataclasses.replace(small[2], kernel="bilinear"), small[2]]
    found = crops(clips, wanted, device="cpu")
    assert [x.shape[-1] for x in found] == [16, SIZE, 16, 16, 16]
    for crop, x in zip(wanted, found, strict=True):
        (alone,) = crops(clips, [crop], device="cpu")
        torch.testing.assert_close(x, alone)
    assert not torch.allclose(found[0], found[2], atol=0.1)
    assert not torch.allclose(found[3], found[4], atol=1e-3)


def test_what_the_decoder_cut_out_can_be_cropped_again() -> None:
    window = Window(size_px=SHORT, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=5)
    one = dataclasses.replace(spec(0), window=window)
    pixels = torch.randint(100, 140, (1, one.nbytes), dtype=torch.uint8)
    layout = torch.tensor([Layout(0, 0, SHORT, SHORT, 0)], dtype=torch.int32)
    clips = ClipBatch(index=torch.arange(1), pixels=pixels, layout=layout, specs=(one,))
    (again,) = crops(clips, [Crop(number=0, size_px=SHORT, scale=(1.0, 1.0), aspect=(1.0, 1.0))], device="cpu")
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, window="crop", size_px=SHORT))
    torch.testing.assert_close(again, to_views(clips, run, device="cpu"))  # all of it at its size: nothing to resample


def check_compiled_functions() -> None:
    """What the next test runs where the functions are as they are: the test run's type checks are not for tracing."""
    from torch._dynamo.testing import CompileCounterWithBackend  # loads the compiler: seconds

    still, jitter = ViewsConfig(), ViewsConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    for function in (render.shipped, render.cropped):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(function, fullgraph=True, backend=counter)
        more = {"size": SIZE, "kernel": "bicubic"} if function is render.cropped else {}
        # Shapes, flips and sizes of batches differ. Jitter is another function, compiled for any size at once.
        todo = [(0, 4, still), (1, 4, still), (0, 2, still), (3, 3, still), (2, 7, still)]
        todo += [(4, 5, jitter)] if function is render.cropped else []
        for first, size, colour in todo:
            crop = Crop(number=0, size_px=SIZE, scale=WIDE, aspect=(0.5, 2.0), flip=0.5, colour=colour)
            clips = batch([spec(i) for i in range(first, first + size)])
            draws = [[drawn(s, Layout(*row), crop)] for s, row in zip(clips.specs, clips.layout.tolist(), strict=True)]
            kinds = [Jitter.of(colour)]
            arguments = (clips.pixels, numbers(clips, draws, kinds), canvas(clips), *kinds)
            torch.testing.assert_close(compiled(*arguments, **more), function(*arguments, **more))
        assert counter.frame_count == (3 if function is render.cropped else 2)


@pytest.mark.slow
def test_views_compile_without_a_break_once_for_a_first_and_once_for_any_other_size_of_batch() -> None:
    subprocess.run(
        [sys.executable, "-c", "from test_crops import check_compiled_functions as check; check()"],
        cwd=Path(__file__).parent,
        check=True,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_compiled_views_on_a_gpu_are_those_of_the_cpu_and_nothing_waits_for_the_gpu() -> None:
    jitter = ViewsConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    for run, clips in (
        (RUN, batch([spec(i) for i in range(4)])),
        (dataclasses.replace(RUN, views=jitter), batch([spec(7)])),
    ):
        to_views(clips, run, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = to_views(clips, run, device="cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(found.cpu(), to_views(clips, run, device="cpu"), rtol=0, atol=1e-3)

"""What is shipped of a frame: its own colours, said; all of it or a crop, the way up that it is displayed."""

from fractions import Fraction

import av
import numpy as np
import pytest
from footage import clip_spec

from rayjepa.data.clip import MATRICES, Layout, Pixels, Window
from rayjepa.data.convert import Shipper, Siting, siting_of
from rayjepa.data.crop import crop_box

HEIGHT, WIDTH = 96, 128
SQUARE = Window(size_px=64, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)


def whole(short: int, long: int) -> Window:
    return Window(kind="whole", size_px=short, long_px=long, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=0)


def shipped(
    frame: av.VideoFrame,
    window: Window,
    *,
    pixels: Pixels = "i420",
    stretch: Fraction = Fraction(1),
    siting: Siting = "left",
) -> tuple[np.ndarray, Layout]:
    spec = clip_spec(frames=1, pixels=pixels, window=window)
    out = np.full((1, spec.nbytes), 77, np.uint8)
    shipper = Shipper(spec, out, stretch, siting)
    shipper.ship(frame, [0])
    assert shipper.layout is not None
    return out[0], shipper.layout


def planes(row: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Y, U and V of one frame of I420."""
    luma, chroma = height * width, height * width // 4
    return [
        row[:luma].reshape(height, width),
        row[luma : luma + chroma].reshape(height // 2, width // 2),
        row[luma + chroma :].reshape(height // 2, width // 2),
    ]


def smooth(height: int = HEIGHT, width: int = WIDTH) -> av.VideoFrame:
    """Waves that scaling hardly changes: at most 2 levels from one pixel to the next."""
    y, x = np.mgrid[: height * 3 // 2, :width]
    levels = 128 + 60 * np.sin(x / 47) * np.cos(y / 53) + 30 * np.sin(x / 59 + y / 43)
    return av.VideoFrame.from_ndarray(levels.astype(np.uint8), format="yuv420p")


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("tagged_range", [0, 1, 2])
@pytest.mark.parametrize(
    ("tag", "matrix"),
    [(1, "bt709"), (2, "bt601"), (3, "bt601"), (5, "bt601"), (6, "bt601"), (9, "bt2020"), (10, "bt2020")],
)
def test_colours_are_shipped_as_they_are_and_said(pix_fmt: str, tagged_range: int, tag: int, matrix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format=pix_fmt)
    frame.colorspace, frame.color_range = tag, tagged_range
    row, layout = shipped(frame, whole(HEIGHT, WIDTH))
    assert np.array_equal(row, noise.ravel())
    is_full = tagged_range == 2 or pix_fmt == "yuvj420p"
    assert layout == Layout(MATRICES.index(matrix), int(is_full), HEIGHT, WIDTH, 0)


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv444p", "yuv422p10le", "yuv420p10le", "yuv444p12le", "nv12"])
@pytest.mark.parametrize(("tag", "full"), [(1, 1), (9, 0), (5, 1)])
def test_every_depth_and_chroma_format_keeps_its_levels(pix_fmt: str, tag: int, full: int) -> None:
    grey = np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8)
    grey[:HEIGHT], grey[HEIGHT : HEIGHT * 5 // 4], grey[HEIGHT * 5 // 4 :] = 190, 90, 160
    frame = av.VideoFrame.from_ndarray(grey, format="yuv420p").reformat(format=pix_fmt)
    frame.colorspace, frame.color_range = tag, 1 + full
    row, layout = shipped(frame, SQUARE)
    assert layout.full_range == full
    for plane, level in zip(planes(row, 64, 64), (190, 90, 160), strict=True):
        assert np.abs(plane.astype(int) - level).max() <= 1


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [((255, 255, 255), (235, 128, 128)), ((0, 0, 0), (16, 128, 128)), ((255, 0, 0), (81, 90, 240))],
)
@pytest.mark.parametrize("pix_fmt", ["gbrp", "rgb24", "bgra"])
def test_rgb_becomes_bt601_in_limited_range(pix_fmt: str, rgb: tuple[int, int, int], yuv: tuple[int, int, int]) -> None:
    image = np.full((HEIGHT, WIDTH, 3), rgb, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
    row, layout = shipped(frame, SQUARE)
    assert layout[:2] == (0, 0)
    for plane, level in zip(planes(row, 64, 64), yuv, strict=True):
        assert np.abs(plane.astype(int) - level).max() <= 2


@pytest.mark.parametrize("tag", [4, 7])
def test_the_matrices_of_old_television_become_bt601(tag: int) -> None:
    image = np.full((HEIGHT, WIDTH, 3), (200, 40, 90), np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv444p", dst_colorspace=tag)
    frame.colorspace = tag
    row, layout = shipped(frame, SQUARE)
    expected, _ = shipped(av.VideoFrame.from_ndarray(image, format="rgb24"), SQUARE)
    assert layout[:2] == (0, 0)
    assert np.abs(row.astype(int) - expected).max() <= 2


def test_colours_that_nobody_can_convert_are_an_error_that_names_them() -> None:
    frame = smooth()
    frame.colorspace = 8
    with pytest.raises(ValueError, match="matrix 8 of ITU-T"):
        shipped(frame, SQUARE)


@pytest.mark.parametrize(
    ("size", "canvas", "laid"),
    [
        ((96, 128), (72, 128), (72, 96, 0)),  # wider canvas: the height fits
        ((90, 160), (80, 90), (50, 90, 0)),  # narrower canvas: the width fits
        ((48, 64), (72, 128), (72, 96, 0)),  # enlarged
        ((128, 96), (72, 128), (72, 96, 1)),  # portrait
        ((96, 96), (72, 128), (72, 72, 0)),  # square
        ((97, 131), (72, 128), (72, 98, 0)),  # odd
        ((8, 400), (72, 128), (2, 128, 0)),  # a line
    ],
)
def test_a_whole_frame_fits_its_canvas_and_the_rest_is_black(
    size: tuple[int, int], canvas: tuple[int, int], laid: tuple[int, int, int]
) -> None:
    frame = av.VideoFrame(size[1], size[0], "yuv420p")
    for plane, level in zip(frame.planes, (200, 60, 70), strict=True):
        plane.update(bytes([level]) * plane.buffer_size)
    row, layout = shipped(frame, whole(*canvas))
    assert layout[2:] == laid
    levels = zip(planes(row, *canvas), (200, 60, 70), (16, 128, 128), (1, 2, 2), strict=True)
    for plane, level, black, part in levels:
        inside = np.zeros(plane.shape, bool)
        inside[: laid[0] // part, : laid[1] // part] = True
        assert (plane[inside] == level).all()
        assert (plane[~inside] == black).all()
    image, layout = shipped(frame, whole(*canvas), pixels="rgb")
    image = image.reshape(*canvas, 3)
    assert layout[2:] == laid
    assert not image[laid[0] :].any()
    assert not image[:, laid[1] :].any()
    assert image[: laid[0], : laid[1]].all(-1).any()


def test_the_black_of_full_range_is_zero() -> None:
    frame = smooth()
    frame.color_range = 2
    row, _ = shipped(frame, whole(96, 160))
    luma, blue, _ = planes(row, 96, 160)
    assert not luma[:, 128:].any()
    assert (blue[:, 64:] == 128).all()


def test_a_portrait_frame_is_shipped_as_its_transpose_would_be() -> None:
    upright = smooth(128, 96)
    lying = av.VideoFrame(128, 96, "yuv420p")
    for ours, theirs in zip(lying.planes, upright.planes, strict=True):
        image = np.frombuffer(theirs, np.uint8).reshape(theirs.height, theirs.line_size)[:, : theirs.width].T
        padded = np.zeros((ours.height, ours.line_size), np.uint8)
        padded[:, : ours.width] = image
        ours.update(padded.tobytes())
    (portrait, a), (landscape, b) = (shipped(frame, whole(48, 80), siting="center") for frame in (upright, lying))
    assert a == b._replace(transposed=1)
    assert np.abs(portrait.astype(int) - landscape).max() <= 2


def test_pixels_that_are_not_square_are_shown_in_the_right_proportion() -> None:
    _, layout = shipped(smooth(96, 128), whole(72, 128), stretch=Fraction(4, 3))
    assert layout[2:] == (72, 128, 0)  # 96 x 171 displayed
    _, layout = shipped(smooth(96, 128), whole(96, 128), stretch=Fraction(1, 2))
    assert layout[2:] == (86, 128, 1)  # 192 x 128 displayed, so it is portrait


@pytest.mark.parametrize("stretch", [Fraction(4, 3), Fraction(3, 4), Fraction(16, 11)])
def test_a_crop_of_pixels_that_are_not_square_is_that_of_the_squared_frame(stretch: Fraction) -> None:
    frame = smooth(240, 320)
    size = (round(320 * stretch), 240) if stretch > 1 else (320, round(240 / stretch))
    squared = frame.reformat(width=size[0], height=size[1])
    for seed in range(4):
        window = Window(size_px=64, scale=(0.3, 0.9), aspect=(0.75, 1.35), seed=seed)
        x, y, w, h = crop_box(window, *size)
        assert x + w <= size[0]
        assert y + h <= size[1]
        found, expected = shipped(frame, window, stretch=stretch)[0], shipped(squared, window)[0]
        difference = np.abs(found[: 64 * 64].astype(int) - expected[: 64 * 64])
        assert difference.max() <= 6  # each side of the crop is rounded to an even number of coded pixels


@pytest.mark.parametrize("pixels", ["i420", "rgb"])
def test_frames_that_change_their_size_keep_the_clips_layout(pixels: Pixels) -> None:
    spec = clip_spec(frames=3, pixels=pixels, window=whole(72, 128))
    out = np.zeros((3, spec.nbytes // 3), np.uint8)
    shipper = Shipper(spec, out)
    shipper.ship(smooth(96, 128), [0])
    layout = shipper.layout
    shipper.ship(smooth(192, 256), [1, 2])
    assert shipper.layout == layout
    assert np.array_equal(out[1], out[2])
    width = 96 if pixels == "i420" else 96 * 3
    first, second = (row[: 72 * 128 * (1 if pixels == "i420" else 3)].reshape(72, -1)[:, width:] for row in out[:2])
    assert np.array_equal(first, second)  # black beyond the content


def test_chroma_is_shipped_in_the_middle_of_its_pixels_wherever_it_was() -> None:
    side = 64
    position = np.arange(side // 2)
    expected = 64 + 2 * (2 * position + 1.0)  # blue rises by 2 a pixel; where a cell's middle is at an odd number
    found: dict[str, np.ndarray] = {}
    sitings: tuple[tuple[Siting, float], ...] = (("left", 0.5), ("center", 1.0))
    for siting, lead in sitings:
        frame = av.VideoFrame(side, side, "yuv420p")
        values = (np.full((side, side), 128), np.tile(64 + 2 * (2 * position + lead), (side // 2, 1)))
        for plane, value in zip(frame.planes, (*values, np.full((side // 2, side // 2), 128)), strict=True):
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            rows[:, : plane.width] = value.round()
            plane.update(rows.tobytes())
        spec = clip_spec(frames=1, window=Window(size_px=side, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1))
        out = np.zeros((1, spec.nbytes), np.uint8)
        Shipper(spec, out, siting=siting).ship(frame, [0])
        found[siting] = out[0, side**2 : side**2 * 5 // 4].reshape(side // 2, -1)[5, 4:-4].astype(float)
    for row in found.values():
        assert np.abs(row - expected[4:-4]).max() <= 1
    assert siting_of("mjpeg") == "center"
    assert siting_of("h264") == "left"

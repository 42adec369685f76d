"""What is made of a video shows the same pictures at the same times, upright, in the same colours, cheap to read."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from footage import FPS, HEIGHT, WIDTH, bad_video, make_video, number_in

from rayjepa.data.decode import probe
from rayjepa.data.encode import encode
from rayjepa.data.recipe import Recipe
from rayjepa.data.upright import fitted
from rayjepa.data.video import BadVideo

RECIPE = Recipe(preset="ultrafast", crf=18)
QUIET = {"x265-params": "log-level=none", "preset": "ultrafast"}
SOURCES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("mp4", {}),
    "variable frame rate": ("mp4", {"vfr": True}),
    "late start": ("mp4", {"late_s": 5.0}),
    "matroska": ("mkv", {"vfr": True}),
    "hours in": ("mkv", {"late_s": 20 * 3600.0}),
    "avi": ("avi", {"codec": "mpeg4", "options": {"bf": "0"}}),
    "ten bits": ("mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": QUIET}),
    "odd size, full colour": ("mp4", {"pix_fmt": "yuv444p", "size": (WIDTH + 1, HEIGHT + 1)}),
    "one frame": ("mp4", {"frames": 1}),
    "transport stream": ("ts", {}),
}


@pytest.fixture
def made_of(tmp_path: Path) -> Callable[..., Path]:
    def make(source: Path, recipe: Recipe = RECIPE) -> Path:
        path = tmp_path / "made.mp4"
        file, out = os.open(source, os.O_RDONLY), os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            answer = encode(file, out, recipe)
        finally:
            os.close(file)
            os.close(out)
        assert answer["bytes"] == path.stat().st_size
        assert answer["difference"] < 2
        return path

    return make


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def times_of(frames: list[av.VideoFrame]) -> list[Fraction]:
    """Seconds from the first frame."""
    assert all(frame.pts is not None for frame in frames)
    return [(frame.pts - frames[0].pts) * frame.time_base for frame in frames]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_frame_stays_at_its_time(kind: str, tmp_path: Path, made_of: Callable[..., Path]) -> None:
    suffix, fields = SOURCES[kind]
    source = make_video(tmp_path / f"source.{suffix}", **{"frames": 40, **fields})
    before, after = frames_of(source), frames_of(made_of(source))
    assert times_of(after) == times_of(before)
    assert after[0].pts == 0
    assert [number_in(frame.to_ndarray()[:HEIGHT]) for frame in after] == list(range(len(after)))
    assert {frame.format.name for frame in after} == {"yuv420p"}


def test_the_index_is_in_front_and_key_frames_come_on_time(tmp_path: Path, made_of: Callable[..., Path]) -> None:
    path = made_of(make_video(tmp_path / "source.mp4", frames=70), Recipe(gop=16))
    data = path.read_bytes()
    assert -1 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as file:
        assert len(file.streams) == 1
        packets = [packet for packet in file.demux(video=0) if packet.size]
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == [0, 16, 32, 48, 64]
    shown = [packet.pts for packet in packets]
    assert all(max(shown[:k]) < min(shown[k:]) for k in (16, 32, 48, 64)), "a group refers to another"
    assert probe(str(path)).frames == 70


def test_nothing_refers_to_what_lies_between(tmp_path: Path, made_of: Callable[..., Path]) -> None:
    path = made_of(make_video(tmp_path / "source.mp4", frames=48), Recipe(gop=16, b_frames=7))
    with av.open(str(path)) as file:
        file.streams.video[0].codec_context.skip_frame = "NONREF"
        kept = [frame.pts // frames_of(path)[1].pts for frame in file.decode(video=0)]
    assert kept == [0, 8, 15, 16, 24, 31, 32, 40, 47]


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((1920, 1080), 288, (512, 288)),
        ((1080, 1920), 288, (288, 512)),
        ((340, 256), 288, (340, 256)),
        ((341, 257), 288, (340, 256)),
        ((640, 272), 128, (302, 128)),
        ((2, 2), 288, (2, 2)),
    ],
)
def test_the_short_side_is_fitted_and_never_enlarged(
    size: tuple[int, int], short: int, expected: tuple[int, int]
) -> None:
    assert fitted(*size, Fraction(1), short) == expected


def test_pixels_become_square(tmp_path: Path, made_of: Callable[..., Path]) -> None:
    assert fitted(720, 576, Fraction(64, 45), 288) == (512, 288)
    assert fitted(100, 100, Fraction(1, 2), 288) == (100, 200)
    source = tmp_path / "wide.mp4"
    with av.open(str(source), "w") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        grey = np.full((96, 64), 128, np.uint8)  # a new frame holds whatever its memory held
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p")))
        file.mux(stream.encode(None))
    after = frames_of(made_of(source))[0]
    assert (after.width, after.height) == (128, 64)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_made_upright(degrees: int, tmp_path: Path, made_of: Callable[..., Path]) -> None:
    source = turned(make_video(tmp_path / "source.mp4", frames=8), tmp_path / "turned.mp4", degrees)
    before, after = frames_of(source)[3], frames_of(made_of(source))[3]
    assert before.rotation % 360 == degrees
    assert after.rotation == 0
    upright = np.rot90(before.to_ndarray()[:HEIGHT], degrees // 90)
    luma = after.to_ndarray()[: after.height, : after.width]
    assert luma.shape == upright.shape
    assert np.abs(luma.astype(int) - upright).mean() < 3


def turned(source: Path, path: Path, degrees: int) -> Path:
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (1, True), (5, False), (6, True), (9, False), (2, False)])
def test_colours_keep_their_matrix_and_range(
    matrix: int, full: bool, tmp_path: Path, made_of: Callable[..., Path]
) -> None:
    source = tmp_path / "coloured.mp4"
    levels = (30, 100, 170, 240)
    with av.open(str(source), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for level in levels:
            planes = [np.full((64, 64), level), np.full((32, 64), 90)]
            frame = av.VideoFrame.from_ndarray(np.concatenate(planes).astype(np.uint8), format="yuv420p")
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    after = frames_of(made_of(source))
    assert {(int(f.colorspace), int(f.color_range) == 2) for f in after} == {(matrix, full)}
    for frame, level in zip(after, levels, strict=True):
        picture = frame.to_ndarray().astype(int)
        assert abs(picture[:64].mean() - level) < 1.5
        assert abs(picture[64:].mean() - 90) < 1.5


def test_red_green_and_blue_become_bt601(tmp_path: Path, made_of: Callable[..., Path]) -> None:
    source = tmp_path / "rgb.mp4"
    with av.open(str(source), "w") as file:
        stream = file.add_stream("libx264rgb", rate=FPS, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for _ in range(3):
            red = np.zeros((64, 64, 3), np.uint8)
            red[..., 0] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        file.mux(stream.encode(None))
    after = frames_of(made_of(source))[0]
    assert (int(after.colorspace), int(after.color_range)) == (6, 1)
    means = [after.to_ndarray()[part].mean() for part in (np.s_[:64], np.s_[64:80], np.s_[80:])]
    assert np.allclose(means, (81, 90, 240), atol=2)


@pytest.mark.parametrize("kind", ["zero byte", "text", "truncated", "audio only"])
def test_what_is_no_video_is_refused(kind: str, tmp_path: Path) -> None:
    bad = bad_video(tmp_path, kind, make_video(tmp_path / "good.mp4", frames=10))
    file, out = os.open(bad, os.O_RDONLY), os.memfd_create("out")
    with pytest.raises(BadVideo):
        encode(file, out, RECIPE)
    os.close(file)
    os.close(out)


def test_an_older_try_leaves_nothing_behind(tmp_path: Path) -> None:
    source = make_video(tmp_path / "source.mp4", frames=4)
    file, out = os.open(source, os.O_RDONLY), os.memfd_create("out")
    os.write(out, bytes(1 << 20))
    first = encode(file, out, RECIPE)
    assert first["bytes"] == os.fstat(out).st_size < 1 << 19
    os.close(file)
    os.close(out)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"short_px": 287}, "short_px=287 must be even"),
        ({"gop": 0}, "gop=0"),
        ({"crf": 60}, "crf=60"),
        ({"preset": "fest"}, "one of ultrafast"),
        ({"tune": "film"}, "fastdecode or none"),
    ],
)
def test_a_recipe_says_what_it_allows(fields: dict[str, int | str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Recipe(**fields)

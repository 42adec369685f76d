"""Every frame of a planned decode is the one that a decode from the first packet on would show, byte for byte."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from footage import FPS, HEIGHT, WIDTH, bad_video, make_video, number_in
from hypothesis import given
from hypothesis import strategies as st

from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.convert import Shipper, coded_box, crop_box
from rayjepa.data.decode import Effort, decode_clip, plan, probe
from rayjepa.data.video import BadVideo

SIZE = 64
QUIET = {"x265-params": "log-level=none", "preset": "ultrafast"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
VP9 = {"deadline": "realtime", "cpu-used": "8"}
NEGATIVE = {"avoid_negative_ts": "disabled"}


def clip_spec(**fields: object) -> ClipSpec:
    window = Window(size_px=SIZE, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=1)
    base = ClipSpec(
        index=0, attempt=0, stream="test", video=0, uri="", start_s=0.0, frames=6, fps=8.0,
        window=window, pixels="i420", flip=False, mask_seed=0, view_seed=0,
    )  # fmt: skip
    return replace(base, **fields)


def decoded(path: Path, spec: ClipSpec) -> tuple[np.ndarray, Effort]:
    out = bytearray(spec.nbytes)
    effort = decode_clip(str(path), spec, out)
    return np.frombuffer(out, np.uint8).reshape(spec.frames, -1), effort


def rotated(path: Path, target: Path) -> Path:
    """The same mp4 with a display matrix of 90 degrees written into its track header."""
    data = bytearray(path.read_bytes())
    one, zero, unit = (1 << 16).to_bytes(4), bytes(4), (1 << 30).to_bytes(4)
    identity = one + zero * 3 + one + zero * 3 + unit
    turned = zero + one + zero + (-(1 << 16)).to_bytes(4, signed=True) + zero * 4 + unit
    at = data.index(identity, data.index(b"tkhd"))
    data[at : at + len(turned)] = turned
    target.write_bytes(data)
    return target


def cut(path: Path, target: Path) -> Path:
    """The same mp4 with an edit list that begins five frames later, within a group of pictures."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16  # tag, version and flags, count, duration of the first edit
    with av.open(str(path)) as file:
        later = int(5 / (FPS * file.streams.video[0].time_base))
    data[at : at + 4] = (int.from_bytes(data[at : at + 4]) + later).to_bytes(4)
    target.write_bytes(data)
    return target


@dataclass(frozen=True)
class Footage:
    """Files by name, made when first asked for."""

    folder: Path

    def __call__(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            MAKERS[name](path)
        return path


MAKERS: dict[str, Callable[[Path], object]] = {
    "h264.mp4": make_video,
    "no_b.mp4": lambda p: make_video(p, options={"bf": "0"}),
    "open_gop.mp4": lambda p: make_video(p, options=OPEN_GOP),
    "hevc.mp4": lambda p: make_video(p, codec="libx265", options=QUIET),
    "ten_bit.mp4": lambda p: make_video(p, codec="libx265", options=QUIET, pix_fmt="yuv420p10le"),
    "vp9.webm": lambda p: make_video(p, codec="libvpx-vp9", options=VP9),
    "av1.mp4": lambda p: make_video(p, codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    "vfr.mp4": lambda p: make_video(p, vfr=True),
    "h264.mkv": make_video,
    "late.mp4": lambda p: make_video(p, late_s=5.0),
    "fragmented.mp4": lambda p: make_video(p, container={"movflags": "frag_keyframe+empty_moov"}),
    "odd_444.mp4": lambda p: make_video(p, pix_fmt="yuv444p", size=(WIDTH + 1, HEIGHT + 3)),
    "rotated.mp4": lambda p: rotated(make_video(p.with_name("upright.mp4")), p),
    "h264.ts": make_video,
    "b_frames.avi": make_video,
    "negative.mkv": lambda p: make_video(p, late_s=-1.0, container=NEGATIVE),
    "slightly_negative.mkv": lambda p: make_video(p, late_s=-2 / FPS, container=NEGATIVE),
    "cut.mp4": lambda p: cut(make_video(p.with_name("whole.mp4")), p),
    "edited.mp4": lambda p: make_video(p, late_s=-1.0, container=NEGATIVE),
}


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return Footage(tmp_path_factory.mktemp("footage"))


def full_decode(path: Path) -> list[tuple[Fraction, av.VideoFrame]]:
    """Every frame with its time since the first; AVI's stamps ignore B-frames and belong to frames by rank."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        stamps = [frame.pts for frame in frames]
        if path.suffix == ".avi":
            file.seek(0)
            stamps = sorted(packet.pts for packet in file.demux(video=0) if packet.size)
        unit = file.streams.video[0].time_base
        timed = [(stamp, frame) for stamp, frame in zip(stamps, frames, strict=True) if stamp is not None]
        return [((stamp - timed[0][0]) * unit, frame) for stamp, frame in timed]


@pytest.mark.parametrize("name", MAKERS)
def test_every_frame_equals_that_of_a_full_decode(footage: Footage, name: str) -> None:
    path = footage(name)
    everything = full_decode(path)
    times = [float(time) for time, _ in everything]
    rng = np.random.default_rng(7)
    for trial in range(6):
        fps = float(rng.choice([4.0, 7.5, 12.0]))
        spec = clip_spec(start_s=float(rng.uniform(0, max(times))), fps=fps)
        spec = replace(spec, window=replace(spec.window, seed=trial))
        expected = np.empty((spec.frames, spec.nbytes // spec.frames), np.uint8)
        shipper = Shipper(spec, expected)
        for row in range(spec.frames):
            shipper.ship(everything[bisect_right(times, spec.start_s + row / fps + 1e-6) - 1][1], [row])
        found, effort = decoded(path, spec)
        assert [hashlib.md5(row).hexdigest() for row in found] == [hashlib.md5(row).hexdigest() for row in expected]
        assert (effort.refused, effort.missing) == (0, 0)


def test_the_painted_number_is_that_of_the_frame_on_display(footage: Footage) -> None:
    spec = clip_spec(start_s=0.5, frames=8, window=Window(size_px=128, scale=(1.0, 1.0), aspect=(1.6, 1.6), seed=0))
    found, _ = decoded(footage("h264.mp4"), spec)
    for row in range(8):  # the whole frame is stretched from 80 to 128 lines, so that each square is 26 lines high
        luma = found[row][: 128 * 128].reshape(128, 128)
        assert number_in(luma[4:20]) == 12 + 3 * row


def test_a_planned_decode_decodes_fewer_frames_than_it_passes(footage: Footage) -> None:
    _, effort = decoded(footage("h264.mp4"), clip_spec(start_s=0.3, frames=4, fps=2.0))
    assert effort.decoded <= 20  # 38 frames lie between the first and the last


@pytest.mark.parametrize("pixels", ["i420", "rgb"])
def test_a_rotated_video_is_the_upright_one_turned(footage: Footage, pixels: str) -> None:
    window = Window(size_px=SIZE, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)
    spec = clip_spec(window=window, pixels=pixels, frames=2)
    turned, upright = (decoded(footage(name), spec)[0] for name in ("rotated.mp4", "upright.mp4"))
    degrees = probe(str(footage("rotated.mp4"))).rotation
    assert degrees in (90, 270)
    planes = [(SIZE, 3)] if pixels == "rgb" else [(SIZE, 1), (SIZE // 2, 1), (SIZE // 2, 1)]
    offset = 0
    for side, channels in planes:
        end = offset + side * side * channels
        before, after = (x[0, offset:end].reshape(side, side, channels) for x in (upright, turned))
        assert np.array_equal(np.rot90(before, degrees // 90), after)
        offset = end


def test_a_video_shorter_than_the_clip_repeats_its_last_frame(footage: Footage) -> None:
    found, _ = decoded(footage("h264.mp4"), clip_spec(start_s=2.4, frames=6, fps=10.0))
    assert not np.array_equal(found[0], found[1])
    assert all(np.array_equal(row, found[1]) for row in found[2:])


def test_full_range_sources_ship_limited_range(tmp_path: Path) -> None:
    path = make_video(tmp_path / "full.mp4", pix_fmt="yuvj420p", frames=12)
    found, _ = decoded(
        path, clip_spec(frames=1, window=Window(size_px=80, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1))
    )
    assert found[0, : 80 * 8].min() >= 16 - 3  # painted black is 16 in RGB: 0 in neither range, 30 in limited range


@pytest.mark.parametrize(
    ("name", "frames", "start_s"), [("h264.mp4", 60, 0.0), ("late.mp4", 60, 5.0), ("vfr.mp4", 60, 0.0)]
)
def test_a_probe_counts_displayed_frames_and_their_time(
    footage: Footage, name: str, frames: int, start_s: float
) -> None:
    found = probe(str(footage(name)))
    assert (found.codec, found.width, found.height, found.pix_fmt) == ("h264", WIDTH, HEIGHT, "yuv420p")
    assert found.frames == frames
    num, den = found.time_base
    assert found.start_pts * num / den == pytest.approx(start_s, abs=1 / FPS)
    assert found.duration_s == pytest.approx(float(full_decode(footage(name))[-1][0]) + 1 / FPS, abs=4 / FPS)


@pytest.mark.parametrize(
    ("kind", "stage", "reason"),
    [
        ("zero byte", "open", "empty file"),
        ("text", "open", "not a video of a known format"),
        ("truncated", "open", "Invalid data found"),
        ("audio only", "open", "no video stream"),
    ],
)
def test_a_bad_file_says_what_is_wrong_with_it(
    footage: Footage, tmp_path: Path, kind: str, stage: str, reason: str
) -> None:
    path = bad_video(tmp_path, kind, footage("h264.mp4"))
    for look in (lambda: decoded(path, clip_spec()), lambda: probe(str(path))):
        with pytest.raises(BadVideo, match=reason) as error:
            look()
        assert (error.value.stage, error.value.kind) == (stage, "content")


def test_a_missing_file_is_an_input_error_and_not_bad_content() -> None:
    with pytest.raises(BadVideo, match="No such file") as error:
        probe("/nowhere/at/all.mp4")
    assert (error.value.stage, error.value.kind) == ("open", "io")


def test_damaged_packets_give_a_whole_clip_or_an_ordinary_failure(footage: Footage, tmp_path: Path) -> None:
    data = footage("h264.mp4").read_bytes()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(48, len(data) * 3 // 4, 60)
        damaged[places] = rng.integers(0, 256, 60)
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(damaged)
        with suppress(BadVideo):
            _, effort = decoded(path, clip_spec(frames=12))
            assert effort.missing <= 3  # a quarter of the clip


def test_a_leading_picture_needs_the_group_before() -> None:
    #        key    ref    key     leading pictures of the second key
    table = [(0, True, False), (3, False, False), (8, True, False), (6, False, False), (7, False, False)]
    assert plan(table, [6]) == ([3], [0, 1, 2, 3])
    assert plan(table, [8]) == ([2], [2])
    assert plan(table, [0, 9]) == ([0, 2], [0, 2])


def test_a_hidden_packet_is_decoded_and_never_picked() -> None:
    table = [(-2, True, True), (-1, False, True), (0, False, False), (1, False, False)]
    assert plan(table, [0]) == ([2], [0, 1, 2])
    with pytest.raises(BadVideo, match="no frame is displayed"):
        plan(table[:2], [0])


@given(
    seed=st.integers(0, 2**63 - 1),
    width=st.integers(2, 4000),
    height=st.integers(2, 4000),
    turns=st.integers(0, 3),
    whole=st.booleans(),
)
def test_a_crop_is_even_and_inside_the_frame(seed: int, width: int, height: int, turns: int, whole: bool) -> None:
    window = Window(size_px=SIZE, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=-1 if whole else seed)
    displayed = (height, width) if turns % 2 else (width, height)
    box = crop_box(window, *displayed)
    assert box == crop_box(window, *displayed)
    for (x, y, w, h), (across, down) in ((box, displayed), (coded_box(box, width, height, turns), (width, height))):
        assert 0 <= x <= x + w <= across
        assert 0 <= y <= y + h <= down
        assert w >= 2
        assert h >= 2
        assert x % 2 == y % 2 == w % 2 == h % 2 == 0


def test_crops_cover_the_asked_shares_and_shapes() -> None:
    window = Window(size_px=SIZE, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=0)
    boxes = [crop_box(replace(window, seed=seed), 640, 360) for seed in range(500)]
    shares = [w * h / (640 * 360) for _, _, w, h in boxes]
    shapes = [w / h for _, _, w, h in boxes]
    assert 0.28 < min(shares) < 0.33
    assert max(shares) > 0.7
    assert 0.73 < min(shapes) < 0.8
    assert 1.25 < max(shapes) < 1.37
    assert crop_box(replace(window, scale=(1.0, 1.0), aspect=(1.0, 1.0)), 640, 360) == (140, 0, 360, 360)

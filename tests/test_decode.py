"""Clips are what is on display at their times, however damaged a file, and for as little decoding as possible."""

import gc
import mmap
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpus import Footage
from footage import FPS, HEIGHT, SIZE, WIDTH, bad_video, clip_spec, number_in
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjepa.data.clip import ClipSpec, Window
from rayjepa.data.container import opened
from rayjepa.data.crop import coded_box, crop_box
from rayjepa.data.decode import Effort, decode_clip, decode_clips, probe
from rayjepa.data.plan import is_clean, plan, reorder_depth
from rayjepa.data.video import BadVideo


def decoded(path: Path, spec: ClipSpec) -> tuple[np.ndarray, Effort]:
    out = bytearray(spec.nbytes)
    effort = decode_clip(str(path), spec, out)
    return np.frombuffer(out, np.uint8).reshape(spec.frames, -1), effort


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return Footage(tmp_path_factory.mktemp("footage"))


def test_the_painted_number_is_that_of_the_frame_on_display(footage: Footage) -> None:
    spec = clip_spec(start_s=0.5, frames=8, window=Window(size_px=128, scale=(1.0, 1.0), aspect=(1.6, 1.6), seed=0))
    found, _ = decoded(footage("h264.mp4"), spec)
    for row in range(8):  # the whole frame is stretched from 80 to 128 lines, so that each square is 26 lines high
        luma = found[row][: 128 * 128].reshape(128, 128)
        assert number_in(luma[4:20]) == 12 + 3 * row


def test_a_planned_decode_decodes_fewer_frames_than_it_passes(footage: Footage) -> None:
    _, effort = decoded(footage("h264.mp4"), clip_spec(start_s=0.3, frames=4, fps=2.0))
    assert effort.decoded <= 20  # 38 frames lie between the first and the last


def test_a_video_shorter_than_the_clip_repeats_its_last_frame(footage: Footage) -> None:
    found, _ = decoded(footage("h264.mp4"), clip_spec(start_s=2.4, frames=6, fps=10.0))
    assert not np.array_equal(found[0], found[1])
    assert all(np.array_equal(row, found[1]) for row in found[2:])


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
    assert found.duration_s == pytest.approx(4.0 if "vfr" in name else 2.5, abs=1e-3)


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


def test_what_clips_share_is_decoded_once(footage: Footage) -> None:
    path = str(footage("pyramid.mp4"))
    spec = clip_spec(start_s=0.3, frames=4, fps=6.0)
    (alone,) = decode_clips(path, [spec], [bytearray(spec.nbytes)])
    efforts = decode_clips(path, [spec] * 3, [bytearray(spec.nbytes) for _ in range(3)])
    assert isinstance(alone, Effort)
    assert sum(effort.decoded for effort in efforts if isinstance(effort, Effort)) == alone.decoded
    assert [effort.sent for effort in efforts if isinstance(effort, Effort)] == [alone.sent] * 3


@pytest.mark.parametrize("name", ["open_gop.mp4", "open_hevc.mp4"])
def test_a_clip_behind_a_gap_in_open_groups_is_the_clip_alone(footage: Footage, name: str) -> None:
    path = str(footage(name))
    specs = [clip_spec(start_s=1.375, frames=2, fps=4.0), clip_spec(start_s=0.0, frames=2, fps=4.0)]
    at_once, alone = ([bytearray(spec.nbytes) for spec in specs] for _ in range(2))
    efforts = decode_clips(path, specs, at_once)
    assert all(isinstance(effort, Effort) and not effort.missing for effort in efforts)
    for spec, out in zip(specs, alone, strict=True):
        decode_clip(path, spec, out)
    assert at_once == alone


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_clips_at_once_are_the_clips_alone(footage: Footage, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["open_hevc.mp4", "open_gop.mp4", "vfr.mp4", "h264.ts", "av1.mp4"]))
    specs = [
        clip_spec(
            start_s=data.draw(st.floats(0.0, 2.6)),
            frames=data.draw(st.integers(1, 6)),
            fps=data.draw(st.sampled_from([4.0, 7.5, 24.0])),
            pixels=data.draw(st.sampled_from(["i420", "rgb"])),
            seek=data.draw(st.sampled_from(["planned", "planned", "linear"])),
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    path = str(footage(name))
    at_once = [bytearray(spec.nbytes) for spec in specs]
    efforts = decode_clips(path, specs, at_once)
    for spec, out, effort in zip(specs, at_once, efforts, strict=True):
        alone = bytearray(spec.nbytes)
        single = decode_clip(path, spec, alone)
        assert out == alone
        assert isinstance(effort, Effort)
        assert (effort.layout, effort.missing, effort.refused) == (single.layout, 0, 0)


def test_a_clip_that_fails_leaves_the_others_of_its_file(footage: Footage, tmp_path: Path) -> None:
    data = bytearray(footage("h264.mp4").read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov")
    data[(begin + end) // 2 : end] = bytes(end - (begin + end) // 2)
    path = tmp_path / "half.mp4"
    path.write_bytes(data)
    specs = [clip_spec(start_s=start_s, frames=4) for start_s in (1.9, 0.0)]
    outs = [bytearray(spec.nbytes) for spec in specs]
    bad, good = decode_clips(str(path), specs, outs)
    assert isinstance(bad, BadVideo)
    assert bad.stage == "decode"
    assert isinstance(good, Effort)
    whole = bytearray(specs[1].nbytes)
    decode_clip(str(footage("h264.mp4")), specs[1], whole)
    assert outs[1] == whole


def test_a_failure_does_not_hold_the_callers_memory(footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "half.mp4"
    data = footage("h264.mp4").read_bytes()
    at = data.index(b"mdat") + 2000
    path.write_bytes(data[:at] + bytes(data.index(b"moov") - at) + data[data.index(b"moov") :])
    spec = clip_spec(start_s=1.9, frames=4)
    gc.disable()
    try:
        out = mmap.mmap(-1, spec.nbytes)
        (effort,) = decode_clips(str(path), [spec], [memoryview(out)])
        assert isinstance(effort, BadVideo)
        out.close()  # BufferError if anything still refers to it
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["layers.mp4", "hevc.mp4", "h264.mp4", "av1.mp4", "vp9.webm"])
def test_packets_are_passed_over_only_where_nothing_can_refer_to_them(footage: Footage, name: str) -> None:
    with opened(str(footage(name))) as video:
        assert video.sparing == ("NONREF" if name in ("hevc.mp4", "h264.mp4") else "DEFAULT")


def test_a_gradual_refresh_is_no_place_to_begin(footage: Footage) -> None:
    with opened(str(footage("refresh.mp4"))) as video:
        keys = [packet for packet in video.packets() if packet.is_keyframe]
        assert [is_clean(video, packet) for packet in keys] == [True, False, False, False, False]
    with opened(str(footage("open_gop.mp4"))) as video:
        assert all(is_clean(video, packet) for packet in video.packets() if packet.is_keyframe)


def test_the_depth_of_reordering_is_that_of_the_worst_frame() -> None:
    assert reorder_depth([(pts, False, False) for pts in (0, 1, 2)]) == 0
    assert reorder_depth([(pts, False, False) for pts in (0, 3, 1, 2)]) == 1
    assert reorder_depth([(pts, False, False) for pts in (0, 8, 4, 2, 1, 3, 6)]) == 3

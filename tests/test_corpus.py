"""Every clip of every kind of file shows, byte for byte, what a decode from the first packet on would show."""

import hashlib
from bisect import bisect_right
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from corpus import MAKERS, Footage
from footage import clip_spec

from rayjepa.data.clip import ClipSpec
from rayjepa.data.container import opened
from rayjepa.data.convert import Shipper, siting_of
from rayjepa.data.decode import Effort, decode_clips
from rayjepa.data.frames import in_order
from rayjepa.data.verify import verify

READ_IN_ORDER = {
    "mpeg4.avi", "msmpeg4.avi", "b_frames.avi", "mpeg2.ts", "h264.ts", "hevc.ts", "mpeg2.mpg", "mpeg1.mpg",
    "wmv2.wmv", "h264.asf", "h264.flv", "vp8.ogv", "negative.mkv", "slightly_negative.mkv", "headless.mkv",
}  # fmt: skip
"""Of these seeks are not exact, or their start is not known."""
COMMON = {
    "h264.mp4", "hevc.mp4", "vp9.webm", "av1.mp4", "mpeg4.mp4", "h264.mkv", "h264.ts", "b_frames.avi", "vfr.mp4",
    "open_hevc.mp4", "fragmented.mp4", "cut.mp4", "rotated_90.mp4", "negative.mkv", "refresh.mkv",
}  # fmt: skip
KINDS = [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]
"""The others take their time together, not each."""


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return Footage(tmp_path_factory.mktemp("corpus"))


def full_decode(path: Path) -> tuple[list[tuple[Fraction, av.VideoFrame]], Fraction, str]:
    """Every frame with its time since the first, the shape of a pixel, and the codec.

    Stamps of AVI and ASF ignore B-frames and belong to frames by rank.
    """
    with av.open(str(path)) as file, av.open(str(path)) as again:
        stream = max(file.streams.video, key=lambda stream: stream.codec_context.width)
        frames = list(file.decode(stream))
        stamps = [frame.pts for frame in frames]
        if path.suffix in (".avi", ".asf"):
            stamps = sorted(packet.pts for packet in again.demux(video=0) if packet.size)
        timed = [(stamp, frame) for stamp, frame in zip(stamps, frames, strict=True) if stamp is not None]
        times = [((stamp - timed[0][0]) * stream.time_base, frame) for stamp, frame in timed]
        return times, Fraction(stream.sample_aspect_ratio or 1), stream.codec_context.name


def digests(rows: np.ndarray) -> list[str]:
    return [hashlib.md5(row).hexdigest() for row in rows]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_equals_that_of_a_full_decode(footage: Footage, name: str) -> None:
    path = footage(name)
    everything, stretch, codec = full_decode(path)
    times = [float(time) for time, _ in everything]
    rng = np.random.default_rng(7)
    specs: list[ClipSpec] = []
    for trial in range(4):
        spec = clip_spec(start_s=float(rng.uniform(0, max(times))), fps=float(rng.choice([4.0, 7.5, 12.0])))
        specs.append(replace(spec, window=replace(spec.window, seed=trial)))
    specs += [clip_spec(start_s=float(rng.uniform(0, max(times))), frames=1) for _ in range(6)]
    alone = [np.empty((spec.frames, spec.nbytes // spec.frames), np.uint8) for spec in specs]
    at_once = [np.empty_like(out) for out in alone]
    efforts = [decode_clips(str(path), [spec], [out])[0] for spec, out in zip(specs, alone, strict=True)]
    efforts += decode_clips(str(path), specs, at_once)
    for spec, one, other in zip(specs, alone, at_once, strict=True):
        expected = np.empty_like(one)
        shipper = Shipper(spec, expected, stretch, siting_of(codec))
        for row in range(spec.frames):
            time = spec.start_s + row / spec.fps + 1e-6
            shipper.ship(everything[bisect_right(times, time) - 1][1], [row])
        assert digests(one) == digests(expected)
        assert digests(other) == digests(expected)
    for effort in efforts:
        assert isinstance(effort, Effort)
        assert (effort.refused, effort.missing) == (0, 0)


@pytest.mark.parametrize("name", KINDS)
def test_a_full_decode_agrees_on_how_a_file_is_to_be_read(footage: Footage, name: str) -> None:
    found = verify(str(footage(name)))
    assert found.seek == ("linear" if name in READ_IN_ORDER else "planned")
    assert found.damaged == 0
    with opened(str(footage(name))) as video:
        seen = [time for time, _ in in_order(video, Effort())]
    assert seen == sorted(seen)
    assert found.frames == len(seen) == len(full_decode(footage(name))[0])

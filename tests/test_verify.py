"""A full decode finds what a look at the packets cannot: damage, and files whose key frames are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpus import Footage, boxes
from footage import clip_spec

from rayjepa.data.decode import Effort, decode_clips, probe
from rayjepa.data.verify import verify
from rayjepa.data.video import BadVideo


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return Footage(tmp_path_factory.mktemp("footage"))


def with_false_entries(path: Path, target: Path) -> None:
    """The same mp4 of gradual refreshes, each of which says that pictures are whole from its first frame on."""
    data = bytearray(path.read_bytes())
    unit = b"\x06\x06\x02"  # SEI, recovery point, two bytes: the count comes first
    at = data.find(unit, data.index(b"mdat"))
    while at >= 0:
        data[at + 3] |= 0x80
        at = data.find(unit, at + 4)
    target.write_bytes(data)


def damaged(path: Path, target: Path, share: float) -> None:
    """The same mp4 with that share of its packets zeroed, at random but for the first."""
    begin = path.read_bytes().index(b"mdat") + 4
    content = next(content for name, content in boxes(path.read_bytes()) if name == b"mdat")
    data, rng, at, number = bytearray(path.read_bytes()), np.random.default_rng(3), 0, 0
    with_packets = []
    while at < len(content):
        size = 4 + int.from_bytes(content[at : at + 4])
        with_packets.append((at, size))
        at += size
    for number, (at, size) in enumerate(with_packets):
        if number > 1 and rng.random() < share:
            data[begin + at + 4 : begin + at + size] = bytes(size - 4)
    target.write_bytes(data)


def test_an_ordinary_file_is_undamaged_and_as_its_probe_says(footage: Footage) -> None:
    for name in ("h264.mp4", "h264.ts"):
        looked = probe(str(footage(name)))
        assert looked.damaged is None
        assert verify(str(footage(name))) == replace(looked, damaged=0)


def test_a_file_that_lies_about_its_key_frames_is_read_in_order_from_then_on(footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "false entries.mp4"
    with_false_entries(footage("refresh.mp4"), path)
    assert probe(str(path)).seek == "planned"
    assert verify(str(path)).seek == "linear"
    specs = [clip_spec(start_s=start_s, seek=seek) for start_s in (0.8, 1.6) for seek in ("linear", "planned")]
    outs = [bytearray(spec.nbytes) for spec in specs]
    right = [bytearray(spec.nbytes) for spec in specs]
    decode_clips(str(path), specs, outs)
    decode_clips(str(footage("refresh.mp4")), specs, right)
    assert outs[0] == right[0]
    assert outs[2] == right[2]
    assert outs[1] != right[1]


def test_damaged_packets_are_counted(footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    damaged(footage("no_b.mp4"), path, 0.1)
    found = verify(str(path))
    assert found.damaged is not None
    assert 0 < found.damaged <= 15


def test_a_file_of_which_too_much_is_damaged_is_bad(footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    damaged(footage("no_b.mp4"), path, 0.6)
    with pytest.raises(BadVideo, match=r"\d+ of 60 packets are damaged") as error:
        verify(str(path))
    assert (error.value.stage, error.value.kind) == ("decode", "content")


def test_a_clip_read_in_order_stops_at_its_last_frame(footage: Footage) -> None:
    spec = clip_spec(start_s=0.2, frames=4, fps=12.0, seek="linear")
    out, planned = bytearray(spec.nbytes), bytearray(spec.nbytes)
    (effort,) = decode_clips(str(footage("h264.mp4")), [spec], [out])
    decode_clips(str(footage("h264.mp4")), [replace(spec, seek="planned")], [planned])
    assert out == planned
    assert isinstance(effort, Effort)
    assert effort.decoded <= 16  # of 60: the last wanted is the twelfth

"""A video of which not all is here: what is missed is asked for, and the clips are those of the whole file."""

import json
import os
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from corpus import MAKERS, Footage
from footage import clip_spec, heavy_video, make_video
from hypothesis import given
from hypothesis import strategies as st

from rayjepa.data.decode import decode_clips, probe
from rayjepa.data.storage import paged
from rayjepa.data.storage.keys import thinned
from rayjepa.data.storage.paged import Paged, Ranges
from rayjepa.data.storage.spans import spans
from rayjepa.data.video import BadVideo

QUICK = {"h264.mp4", "h264.mkv", "b_frames.avi", "fragmented.mp4"}
KINDS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return Footage(tmp_path_factory.mktemp("corpus"))


class Owner:
    """Who has all of the file, and hands out what is asked for; the rest of the memory holds nonsense, not zeros."""

    def __init__(self, content: bytes, here: list[tuple[int, int]], lies_after: int | None = None) -> None:
        self.content = content
        self.asked: list[tuple[int, int]] = []
        self.lies_after = lies_after
        self.fd = os.memfd_create("paged")
        os.pwrite(self.fd, b"\xa5" * len(content), 0)
        for first, last in here:
            os.pwrite(self.fd, content[first:last], first)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours, self.theirs = ours, theirs
        self.video = Paged(self.fd, len(content), here=here, ask=theirs)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while message := self.ours.recv(1 << 16):
            wanted = json.loads(message)
            first, last = wanted["first"], wanted["last"]
            self.asked.append((first, last))
            for low, high in wanted["drop"]:
                os.pwrite(self.fd, b"\xa5" * (high - low), low)
            failure = None
            if self.lies_after is not None and len(self.asked) > self.lies_after:
                failure = "storage is gone"
            else:
                os.pwrite(self.fd, self.content[first:last], first)
            self.ours.send(json.dumps({"failure": failure, "kind": "io"}).encode())
        self.ours.close()


@contextmanager
def owner(path: Path, here: list[tuple[int, int]] | None = None, **more: int) -> Generator[Owner, None, None]:
    made = Owner(path.read_bytes(), here or [], **more)
    try:
        yield made
    finally:
        made.theirs.close()
        made.thread.join()
        os.close(made.fd)


@pytest.mark.parametrize("name", KINDS)
def test_clips_of_any_file_that_comes_in_pieces_equal_those_of_the_whole(
    footage: Footage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "BLOCK", 1000)
    path = footage(name)
    specs = [clip_spec(start_s=start_s, seek=probe(str(path)).seek) for start_s in (0.0, 1.3)]
    whole = [bytearray(spec.nbytes) for spec in specs]
    pieces = [bytearray(spec.nbytes) for spec in specs]
    decode_clips(str(path), specs, whole)
    with owner(path) as had:
        for spec, out in zip(specs, pieces, strict=True):
            decode_clips(had.video, [spec], [out])
        assert had.asked
        assert sum(last - first for first, last in had.asked) <= len(had.content)  # nothing is asked for twice
        assert probe(had.video) == probe(str(path))
    assert pieces == whole


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "b_frames.avi"])
def test_bytes_that_cannot_be_had_fail_every_clip_whatever_ffmpeg_makes_of_them(
    footage: Footage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "BLOCK", 1000)
    path = footage(name)
    spec = clip_spec(start_s=1.3, seek=probe(str(path)).seek)
    with owner(path) as had:
        decode_clips(had.video, [spec], [bytearray(spec.nbytes)])
    for answers in range(len(had.asked)):
        with owner(path, lies_after=answers) as lost, pytest.raises(BadVideo, match="storage is gone") as failure:
            decode_clips(lost.video, [spec], [bytearray(spec.nbytes)])
        assert failure.value.kind == "io"


def test_of_a_file_read_from_end_to_end_what_was_read_first_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "BLOCK", 1000)
    monkeypatch.setattr(paged, "LONGEST", 2000)
    monkeypatch.setattr(paged, "KEPT", 6000)
    path = tmp_path / "film"
    path.write_bytes(os.urandom(50_000))
    with owner(path) as had:
        read = b""
        while part := had.video.read(700):
            read += part
        assert read == had.content
        had.video.seek(10)
        assert had.video.read(20) == had.content[10:30]
        assert sum(last - first for first, last in had.video._here) <= 8000


def test_a_member_of_a_shard_is_read_as_if_it_were_a_file(tmp_path: Path) -> None:
    alone = make_video(tmp_path / "alone.mp4")
    shard = tmp_path / "shard.tar"
    shard.write_bytes(os.urandom(777) + alone.read_bytes() + os.urandom(333))
    spec = clip_spec(start_s=1.0)
    outs = [bytearray(spec.nbytes), bytearray(spec.nbytes)]
    decode_clips(str(alone), [spec], [outs[0]])
    fd = os.open(shard, os.O_RDONLY)
    decode_clips(Paged(fd, alone.stat().st_size, base=777), [spec], [outs[1]])
    assert outs[0] == outs[1]
    assert Paged(fd, 100, base=777).pread(200, 90) == alone.read_bytes()[90:100]
    os.close(fd)


@pytest.mark.parametrize(
    "container", ["mp4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mkv", "faststart"))]
)
def test_the_places_of_a_large_video_lead_to_all_that_its_clips_need(tmp_path: Path, container: str) -> None:
    path = tmp_path / ("film.mkv" if container == "mkv" else "film.mp4")
    heavy_video(path, container={"movflags": "faststart"} if container == "faststart" else None)
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    found = probe(fd)
    os.close(fd)
    assert found.key_s == (0.0, 1.0, 2.0, 3.0)
    assert found.head is not None
    assert found.tail is not None
    assert found.key_bytes is not None
    for start_s in (0.0, 1.2, 1.9, 3.5):
        spec = clip_spec(start_s=start_s, frames=4)
        hints = spans(
            head=found.head, tail=found.tail, key_s=found.key_s, key_bytes=found.key_bytes, nbytes=size,
            start_s=start_s, seconds=0.5,
        )  # fmt: skip
        assert sum(last - first for first, last in hints) < 0.85 * size
        whole, pieces = bytearray(spec.nbytes), bytearray(spec.nbytes)
        decode_clips(str(path), [spec], [whole])
        with owner(path, list(hints)) as had:
            decode_clips(had.video, [spec], [pieces])
        assert had.asked == []
        assert whole == pieces


@pytest.mark.slow
def test_where_an_index_lies_all_over_the_file_no_places_are_told(tmp_path: Path) -> None:
    path = heavy_video(tmp_path / "film.mp4", container={"movflags": "frag_keyframe+empty_moov"})
    fd = os.open(path, os.O_RDONLY)
    assert probe(fd).head is None
    os.close(fd)


def test_key_frames_are_thinned_evenly_and_only_told_if_they_rise() -> None:
    many = [(float(k), 100 * k) for k in range(1000)]
    times, places = thinned(many) or ((), ())
    assert len(times) == len(places) == 64
    assert times[0] == 0
    assert {round(b - a) for a, b in pairwise(times)} <= {15, 16}
    assert all(place == 100 * time for time, place in zip(times, places, strict=True))
    assert thinned([(0.0, 5), (1.0, 4)]) is None
    assert thinned([(0.0, 5)]) is None


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12), st.tuples(*[st.integers(0, 60)] * 2))
def test_ranges_hold_what_was_added_and_not_what_was_removed(
    added: list[tuple[int, int]], removed: tuple[int, int]
) -> None:
    ranges, held = Ranges(), set[int]()
    for first, last in added:
        ranges.add(first, last)
        held |= {*range(first, last)}
    ranges.remove(*sorted(removed))
    held -= {*range(*sorted(removed))}
    parts = [*ranges]
    assert {at for first, last in parts for at in range(first, last)} == held
    assert all(a[1] < b[0] for a, b in pairwise(parts))
    for at in range(61):
        assert (ranges.end_from(at) > at) == (at in held)
        if at not in held:
            end = ranges.hole_at(at, 61)
            assert not held & {*range(at, end)}
            assert end == 61 or end in held


def test_the_spans_of_a_clip_are_the_index_and_its_groups_of_pictures() -> None:
    mib = 1 << 20
    place = {
        "head": mib, "tail": 2 * mib, "key_s": [0.0, 10.0, 20.0, 30.0],
        "key_bytes": [mib, 10 * mib, 20 * mib, 30 * mib], "nbytes": 40 * mib,
    }  # fmt: skip
    assert spans(**place, start_s=12.0, seconds=4.0) == (
        (0, mib), (10 * mib - (32 << 10), 20 * mib + (256 << 10)), (38 * mib, 40 * mib),
    )  # fmt: skip
    assert spans(**place, start_s=18.0, seconds=4.0)[1] == (10 * mib - (32 << 10), 30 * mib + (256 << 10))
    assert spans(**place, start_s=0.0, seconds=1.0) == ((0, 10 * mib + (256 << 10)), (38 * mib, 40 * mib))
    assert spans(**place, start_s=31.0, seconds=99.0) == ((0, mib), (30 * mib - (32 << 10), 40 * mib))
    far = place | {"key_bytes": [mib, 10 * mib, 200 * mib, 300 * mib], "nbytes": 400 * mib}
    assert spans(**far, start_s=12.0, seconds=4.0) == ((0, mib), (398 * mib, 400 * mib))  # too much to fetch ahead
    unknown = place | {"head": None, "key_s": (), "key_bytes": ()}
    assert spans(**unknown, start_s=12.0, seconds=4.0) == ((0, mib),)

"""A file can ask for no more than the limits allow, in formats that are listed, and can reach no other file."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from corpus import Footage, box, boxes
from footage import WIDTH, clip_spec, make_video

from rayjepa.data.clip import Limits
from rayjepa.data.decode import decode_clip, decode_clips, probe
from rayjepa.data.verify import verify
from rayjepa.data.video import BadVideo

IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    return Footage(tmp_path_factory.mktemp("footage"))


@contextmanager
def opens_of(path: Path) -> Iterator[list[int]]:
    """Fills the list with the kernel's notices that somebody opened the file."""
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init1(IN_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) > 0
    notices: list[int] = []
    try:
        yield notices
        try:
            data = os.read(watch, 1 << 16)
        except BlockingIOError:
            return
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            notices.append(mask)
            data = data[16 + length :]
    finally:
        os.close(watch)


def looks(path: Path, limits: Limits = Limits(), seek: str = "planned") -> list[BadVideo]:
    """What a probe, a full decode and a clip say of a file that none of them may accept."""
    spec = clip_spec(seek=seek)
    found = []
    for look in (
        lambda: probe(str(path), limits),
        lambda: verify(str(path), limits),
        lambda: decode_clip(str(path), spec, bytearray(spec.nbytes), limits),
    ):
        with pytest.raises(BadVideo) as error:
            look()
        found.append(error.value)
    return found


def pointing_elsewhere(path: Path, target: Path, other: Path) -> None:
    """The same mp4, whose data reference says that its samples are in another file."""
    name = os.fsencode(other)
    volume = struct.pack(">10xB27s12xB63s16xHH16x", 0, b"", 0, b"", 0, 0)
    place = struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)
    alias = box(b"alis", bytes(4) + volume + place + b"\xff\xff\0\0" + bytes(16))

    def rebuilt(name: bytes, content: bytes) -> bytes:
        if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            content = b"".join(rebuilt(*inner) for inner in boxes(content))
        if name == b"dref":
            content = content[:8] + alias
        return box(name, content)

    target.write_bytes(b"".join(rebuilt(*part) for part in boxes(path.read_bytes())))


def test_the_watch_sees_it_when_ffmpeg_is_let_open_what_an_mp4_names(footage: Footage, tmp_path: Path) -> None:
    other, path = footage("h264.mp4"), tmp_path / "pointing.mp4"
    pointing_elsewhere(other, path, other)
    with opens_of(other) as notices, av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}):
        pass
    assert notices


@pytest.mark.parametrize("kind", ["playlist", "concat script", "manifest", "session", "mp4 elsewhere", "image list"])
def test_a_file_that_names_another_does_not_open_it(footage: Footage, tmp_path: Path, kind: str) -> None:
    other, path = footage("h264.mp4"), tmp_path / "innocent.mp4"
    match kind:
        case "playlist":
            path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{other}\n#EXT-X-ENDLIST\n")
        case "concat script":
            path.write_text(f"ffconcat version 1.0\nfile '{other}'\n")
        case "manifest":
            path.write_text(
                '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
                f'<Representation id="0"><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>'
            )
        case "session":
            path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n")
        case "mp4 elsewhere":
            pointing_elsewhere(other, path, other)
        case _:
            path.write_bytes(b"\xff\xd8\xff\xe0" + os.fsencode(other) * 100)
    with opens_of(other) as notices:
        for error in looks(path):
            assert error.kind == "content"
    assert not notices


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name"),
    [("huffyuv", "yuv422p", "huffyuv"), ("png", "rgb24", "png"), ("rawvideo", "yuv420p", "rawvideo")],
)
def test_a_codec_that_is_not_on_the_list_is_refused_by_name(
    tmp_path: Path, codec: str, pix_fmt: str, name: str
) -> None:
    path = make_video(tmp_path / "other.avi", codec=codec, pix_fmt=pix_fmt, frames=8, ticks=1)
    for error in looks(path):
        assert error.stage == "open"
        assert f"codec {name} is not on the list" in error.reason
        assert "h264,hevc" in error.reason


@pytest.mark.parametrize("suffix", ["gif", "nut", "mxf"])
def test_a_container_that_is_not_on_the_list_is_refused(tmp_path: Path, suffix: str) -> None:
    codec, pix_fmt = ("gif", "rgb8") if suffix == "gif" else ("mpeg4" if suffix == "nut" else "mpeg2video", "yuv420p")
    path = make_video(tmp_path / f"other.{suffix}", codec=codec, pix_fmt=pix_fmt, frames=8, ticks=1)
    for error in looks(path):
        assert (error.stage, error.kind) == ("open", "content")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(file_bytes=1000), "GiB is above data.max_file_gib="),
        (Limits(frame_pixels=WIDTH), f"a frame of {WIDTH} x 80 pixels is above data.max_frame_px={WIDTH}"),
        (Limits(video_s=1.0), "h is above data.max_video_h=0.000277778"),
    ],
)
@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "h264.ts"])
def test_a_file_that_claims_too_much_is_refused(footage: Footage, name: str, limits: Limits, reason: str) -> None:
    for error in looks(footage(name), limits):
        assert (error.stage, error.kind) == ("open", "content")
        assert reason in error.reason


def test_a_clip_that_needs_too_many_packets_is_refused_and_another_is_not(footage: Footage) -> None:
    path, limits = str(footage("h264.mp4")), Limits(packets=15)
    spec = clip_spec(start_s=0.5, frames=2, fps=24.0)
    decode_clip(path, spec, bytearray(spec.nbytes), limits)
    spec = clip_spec(start_s=0.9, frames=12, fps=24.0)
    with pytest.raises(BadVideo, match="more than data") as error:
        decode_clip(path, spec, bytearray(spec.nbytes), limits)
    assert error.value.stage == "demux"


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_frames_that_grow_beyond_the_limit_are_refused_when_they_come(tmp_path: Path, suffix: str) -> None:
    codec = "libx264" if suffix == "ts" else "mpeg2video"
    small = make_video(tmp_path / f"small.{suffix}", codec=codec, ticks=1)
    large = make_video(tmp_path / f"large.{suffix}", codec=codec, size=(320, 240), ticks=1)
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    limits = Limits(frame_pixels=WIDTH * 80)
    spec = clip_spec(frames=4, fps=4.0)
    decode_clip(str(path), spec, bytearray(spec.nbytes), limits)
    with pytest.raises(BadVideo, match="a frame of 320 x 240 pixels is above") as error:
        verify(str(path), limits)
    assert error.value.stage == "decode"


def test_only_a_cover_picture_is_no_video(tmp_path: Path, footage: Footage) -> None:
    path = tmp_path / "song.mp4"
    parts = boxes(footage("cover_first.mp4").read_bytes())
    without = b"".join(
        box(
            name,
            b"".join(box(*inner) for inner in boxes(content) if inner[0] != b"trak") if name == b"moov" else content,
        )
        for name, content in parts
    )
    path.write_bytes(without)
    for error in looks(path):
        assert error.reason == "no video stream but a picture"


def test_an_http_url_inside_a_playlist_connects_to_nobody(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        path = tmp_path / "list.mp4"
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n")
        looks(path)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_matroska_cut_short_is_bad_content_and_not_a_bad_disk(tmp_path: Path) -> None:
    data = make_video(tmp_path / "whole.mkv", codec="libx265", options={"x265-params": "log-level=none"}).read_bytes()
    cut = tmp_path / "cut.mkv"
    kinds: set[str] = set()
    for share in range(2, 60, 2):
        cut.write_bytes(data[: len(data) * share // 100])
        for start_s in (0.0, 1.2):
            spec = clip_spec(start_s=start_s)
            try:
                [outcome] = decode_clips(str(cut), [spec], [bytearray(spec.nbytes)])
            except BadVideo as error:
                outcome = error
            if isinstance(outcome, BadVideo):
                kinds.add(outcome.kind)
    assert kinds == {"content"}


def test_a_matroska_that_starts_late_is_as_long_as_what_it_shows(tmp_path: Path) -> None:
    late = make_video(tmp_path / "late.mkv", late_s=30 * 3600.0)
    assert probe(str(late), Limits(video_s=3600.0)).duration_s < 5

"""One small video of every kind that a decoder meets, each made when first asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from footage import FPS, HEIGHT, WIDTH, make_video

QUIET = {"x265-params": "log-level=none", "preset": "ultrafast"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
VP9 = {"deadline": "realtime", "cpu-used": "8"}
UNSEEN = {"deadline": "good", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "12"}
"""libvpx then codes pictures that are only referred to."""
AV1 = {"preset": "12", "svtav1-params": "lp=1"}
PYRAMID = {"x264-params": "b-pyramid=normal:b-adapt=0:bframes=7:keyint=24"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
NEGATIVE = {"avoid_negative_ts": "disabled"}
NO_B = {"bf": "0"}


def x265(settings: str) -> dict[str, str]:
    return {"x265-params": f"log-level=none:{settings}", "preset": "ultrafast"}


def turned(path: Path, target: Path, degrees: int) -> None:
    """The same mp4 with a display matrix written into its track header."""
    data = bytearray(path.read_bytes())
    zero, unit = bytes(4), (1 << 30).to_bytes(4)
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    a, b, c, d = ((x << 16).to_bytes(4, signed=True) for x in (cos, sin, -sin, cos))
    one = (1 << 16).to_bytes(4)
    at = data.index(one + zero * 3 + one + zero * 3 + unit, data.index(b"tkhd"))
    matrix = a + b + zero + c + d + zero * 3 + unit
    data[at : at + len(matrix)] = matrix
    target.write_bytes(data)


def box(name: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4) + name + content


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Name and content of each box of mp4, one level deep."""
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    return found


def cut(path: Path, target: Path) -> None:
    """The same mp4 with an edit list that begins five frames later, within a group of pictures."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16  # tag, version and flags, count, duration of the first edit
    with av.open(str(path)) as file:
        later = int(5 / (FPS * file.streams.video[0].time_base))
    data[at : at + 4] = (int.from_bytes(data[at : at + 4]) + later).to_bytes(4)
    target.write_bytes(data)


def spliced(path: Path, target: Path) -> None:
    """The same mp4 without its frames 17 to 33, left out by an edit list of two parts."""
    with av.open(str(path)) as file:
        frame = int(1 / (FPS * file.streams.video[0].time_base))
    data = path.read_bytes()
    place = int.from_bytes(data[data.index(b"elst") + 16 :][:4])  # where the first edit begins: after the reordering
    edits = [(17 * 1000 // FPS, place), (26 * 1000 // FPS, place + 34 * frame)]
    table = b"".join(length.to_bytes(4) + start.to_bytes(4) + (1 << 16).to_bytes(4) for length, start in edits)
    elst = box(b"elst", bytes(4) + len(edits).to_bytes(4) + table)

    def rebuilt(name: bytes, content: bytes) -> bytes:
        if name in (b"moov", b"trak", b"edts"):
            content = b"".join(rebuilt(*inner) for inner in boxes(content))
        return elst if name == b"elst" else box(name, content)

    target.write_bytes(b"".join(rebuilt(name, content) for name, content in boxes(data)))


def several(path: Path, order: str) -> Path:
    """A video beside others: tone (a) or another, smaller video (w) before or after it (v)."""
    sources = {"v": make_video(path.with_name(f"one of {path.name}"), late_s=1.0)}
    if "w" in order:
        sources["w"] = make_video(path.with_name(f"other of {path.name}"), frames=30, size=(64, 48))
    with av.open(str(path), "w") as out:
        streams = {}
        files = {key: av.open(str(source)) for key, source in sources.items()}
        for key in order:
            if key == "a":
                streams[key] = out.add_stream("aac", rate=8000, layout="mono")
            else:
                streams[key] = out.add_stream_from_template(files[key].streams.video[0])
        packets: list[av.Packet] = []
        for key in order:
            if key == "a":
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                for i in range(20):
                    tone.sample_rate, tone.pts, tone.time_base = 8000, 1024 * i, Fraction(1, 8000)
                    packets += streams[key].encode(tone)
                packets += streams[key].encode(None)
                continue
            for packet in files[key].demux(video=0):
                if packet.dts is not None:
                    packet.stream = streams[key]
                    packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
        for file in files.values():
            file.close()
    return path


def remuxed(source: Path, path: Path) -> None:
    """The same streams in another container."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(stream) for stream in whole.streams]
        for packet in whole.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)


def headless(path: Path) -> None:
    """A Matroska file that begins in the middle of a group of pictures."""
    whole = make_video(path.with_name(f"whole {path.name}"))
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number > 4:
                packet.stream = stream
                out.mux(packet)


def covered(path: Path) -> None:
    """An mp4 whose cover art comes before its video: the box of metadata is moved before that of the track."""
    plain = make_video(path.with_name(f"plain {path.name}"))
    with av.open(str(path), "w") as out, av.open(str(plain)) as source:
        stream = out.add_stream_from_template(source.streams.video[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame(32, 32, "yuvj420p")) + cover.encode(None):
            out.mux(packet)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    parts = boxes(path.read_bytes())
    order = (b"mvhd", b"udta", b"trak")
    moved = b"".join(
        box(name, content)
        if name != b"moov"
        else box(
            name, b"".join(box(*inner) for inner in sorted(boxes(content), key=lambda inner: order.index(inner[0])))
        )
        for name, content in parts
    )
    path.write_bytes(moved)


def without_hints(path: Path, target: Path) -> None:
    """The same H.264 without what its header says of colours, timing and reordering, as many cameras write it.

    Source:  ITU-T H.264, section 7.3.2.1.1 (sequence parameter set), of which all before the VUI is kept.
    """
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        header = bytes(file.streams.video[0].codec_context.extradata)
    size = int.from_bytes(header[6:8])
    sps = header[8 : 8 + size]
    bits = "".join(f"{byte:08b}" for byte in sps.replace(b"\0\0\3", b"\0\0"))
    at = 32

    def number() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    number()  # its own
    if sps[1] == 100:
        assert [number() for _ in range(3)] == [1, 0, 0]  # 4:2:0, 8 bits
        at += 2
    number()  # length of frame numbers
    if number() == 0:
        number()  # length of order counts
    number()  # frames referred to
    at += 1
    number(), number()  # width and height
    assert bits[at] == "1"  # no fields
    at += 2
    at += 1
    if bits[at - 1] == "1":
        [number() for _ in range(4)]
    kept = bits[:at] + "01"
    kept += "0" * (-len(kept) % 8)
    short = bytes(int(kept[i : i + 8], 2) for i in range(0, len(kept), 8))
    place = data.index(sps)
    data[place : place + size] = short + bytes(size - len(short))
    target.write_bytes(data)


def unhinted(path: Path) -> Path:
    """An mp4 that reorders far, and does not say so."""
    source = make_video(path.with_name(f"hinted {path.name}.mp4"), options=PYRAMID)
    without_hints(source, path.with_suffix(".mp4"))
    return path.with_suffix(".mp4")


@dataclass(frozen=True)
class Footage:
    """Files by name, made when first asked for."""

    folder: Path

    def __call__(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            MAKERS[name](path)
        return path


def upright(path: Path) -> Path:
    """The video that another one is made of."""
    return make_video(path.with_name(f"upright {path.name}"))


MAKERS: dict[str, Callable[[Path], object]] = {
    "h264.mp4": make_video,
    "no_b.mp4": lambda p: make_video(p, options=NO_B),
    "pyramid.mp4": lambda p: make_video(p, options=PYRAMID),
    "no_hints.mp4": unhinted,
    "no_hints.mkv": lambda p: remuxed(unhinted(p), p),
    "open_gop.mp4": lambda p: make_video(p, options=OPEN_GOP),
    "refresh.mp4": lambda p: make_video(p, options=REFRESH),
    "interlaced.mp4": lambda p: make_video(p, options={"x264-params": "tff=1"}),
    "ten_bit_h264.mp4": lambda p: make_video(p, pix_fmt="yuv420p10le"),
    "422.mp4": lambda p: make_video(p, pix_fmt="yuv422p"),
    "odd_444.mp4": lambda p: make_video(p, pix_fmt="yuv444p", size=(WIDTH + 1, HEIGHT + 3)),
    "full_range.mp4": lambda p: make_video(p, pix_fmt="yuvj420p"),
    "hevc.mp4": lambda p: make_video(p, codec="libx265", options=QUIET),
    "ten_bit.mp4": lambda p: make_video(p, codec="libx265", options=QUIET, pix_fmt="yuv420p10le"),
    "open_hevc.mp4": lambda p: make_video(p, codec="libx265", options=x265("open-gop=1:keyint=12:bframes=4")),
    "layers.mp4": lambda p: make_video(p, codec="libx265", options=x265("temporal-layers=3:bframes=4:b-adapt=0")),
    "vp9.webm": lambda p: make_video(p, codec="libvpx-vp9", options=VP9),
    "vp9.mp4": lambda p: make_video(p, codec="libvpx-vp9", options=UNSEEN),
    "vp8.webm": lambda p: make_video(p, codec="libvpx", options=UNSEEN),
    "av1.mp4": lambda p: make_video(p, codec="libsvtav1", options=AV1),
    "av1.webm": lambda p: make_video(p, codec="libsvtav1", options=AV1),
    "mpeg4.mp4": lambda p: make_video(p, codec="mpeg4"),
    "mpeg4.avi": lambda p: make_video(p, codec="mpeg4"),
    "msmpeg4.avi": lambda p: make_video(p, codec="msmpeg4", ticks=1, options=NO_B),
    "mpeg2.mp4": lambda p: make_video(p, codec="mpeg2video", ticks=1),
    "mpeg2.ts": lambda p: make_video(p, codec="mpeg2video", ticks=1),
    "mpeg2.mpg": lambda p: make_video(p, codec="mpeg2video", ticks=1),
    "mpeg1.mpg": lambda p: make_video(p, codec="mpeg1video", ticks=1),
    "mjpeg.mov": lambda p: make_video(p, codec="mjpeg", pix_fmt="yuvj420p", ticks=1, options=NO_B),
    "prores.mov": lambda p: make_video(p, codec="prores_ks", pix_fmt="yuv422p10le", frames=24),
    "ffv1.mkv": lambda p: make_video(p, codec="ffv1"),
    "wide_pixels.3gp": lambda p: make_video(p, codec="h263", ticks=1, options=NO_B, size=(176, 144)),
    "wmv2.wmv": lambda p: make_video(p, codec="wmv2", ticks=1, options=NO_B),
    "h264.asf": make_video,
    "h264.flv": make_video,
    "vp8.ogv": lambda p: make_video(p, codec="libvpx"),
    "h264.ts": make_video,
    "hevc.ts": lambda p: make_video(p, codec="libx265", options=QUIET),
    "b_frames.avi": make_video,
    "h264.mkv": make_video,
    "refresh.mkv": lambda p: make_video(p, options=REFRESH),
    "headless.mkv": headless,
    "vfr.mp4": lambda p: make_video(p, vfr=True),
    "vfr.mkv": lambda p: make_video(p, vfr=True),
    "one_frame.mp4": lambda p: make_video(p, frames=1),
    "late.mp4": lambda p: make_video(p, late_s=5.0),
    "ten_hours.mp4": lambda p: make_video(p, late_s=36000.0),
    "ten_hours.mkv": lambda p: make_video(p, late_s=36000.0),
    "fragmented.mp4": lambda p: make_video(p, container=FRAGMENTS),
    "late_fragments.mp4": lambda p: make_video(p, late_s=36000.0, options=OPEN_GOP, container=FRAGMENTS),
    "negative.mkv": lambda p: make_video(p, late_s=-1.0, container=NEGATIVE),
    "slightly_negative.mkv": lambda p: make_video(p, late_s=-2 / FPS, container=NEGATIVE),
    "edited.mp4": lambda p: make_video(p, late_s=-1.0, container=NEGATIVE),
    "cut.mp4": lambda p: cut(upright(p), p),
    "spliced.mp4": lambda p: spliced(upright(p), p),
    "rotated_90.mp4": lambda p: turned(upright(p), p, 90),
    "rotated_180.mp4": lambda p: turned(upright(p), p, 180),
    "rotated_270.mp4": lambda p: turned(upright(p), p, 270),
    "sound_first.mp4": lambda p: several(p, "av"),
    "sound_first.mkv": lambda p: remuxed(several(p.with_suffix(".mp4"), "av"), p),
    "two_videos.mp4": lambda p: several(p, "vw"),
    "cover_first.mp4": covered,
}

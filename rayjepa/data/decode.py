"""From an open file to the frames of one clip, decoding as little as possible. The child imports this: av, numpy.

A clip is first planned on packets alone (demuxing costs microseconds): which frame is on display at each wanted time,
which packets those frames depend on. Only these go through FFmpeg, on one thread; each wanted frame passes at once
through one crop-and-scale graph into the caller's memory. Every frame is equal, byte for byte, to that of a decode from
the first packet on, except that a packet nothing refers to is not decoded.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from rayjepa.data.clip import ClipSpec
from rayjepa.data.container import MAX_PIXELS, Video, opened, plain, stage
from rayjepa.data.convert import Shipper, quarter_turns
from rayjepa.data.video import BadVideo, Probe

MAX_PACKETS = 4096
"""Packets held for one clip: two minutes of video, far above any sane group of pictures."""
MAX_BAD = 0.25
"""Share of a clip's frames that may be missing, and of its packets that may be refused, before the clip is."""

USUAL_FPS = 25
"""Frame rate of a video that does not say its own."""
Table = list[tuple[int, bool, bool]]
"""Packets in decode order: time stamp, is it a key frame, is it decoded but never displayed (before an edit)."""


@dataclass(slots=True, kw_only=True)
class Effort:
    """What one clip took."""

    sent: int = 0
    """Packets sent to the decoder."""
    decoded: int = 0
    """Frames that came out of the decoder."""
    refused: int = 0
    """Packets that the decoder refused."""
    missing: int = 0
    """Frames of the clip that repeat another, because their own did not come out."""
    complaint: str = "the decoder said nothing"
    """What the decoder said of the last packet that it refused."""


def decode_clip(file: int | str, spec: ClipSpec, out: Any) -> Effort:
    """Fill `out` with the clip that `spec` describes; return what it took.

    Shapes:  out is writable memory of spec.nbytes bytes: frames x I420 (size*size*3/2) or frames x RGB (size*size*3).
    Raises:  BadVideo; MemoryError, after which the process should end.
    """
    pictures = np.frombuffer(out, np.uint8, spec.nbytes).reshape(spec.frames, -1)
    shipper, effort = Shipper(spec, pictures), Effort()
    with opened(file) as video:
        if video.start is None:
            _linear(video, spec, shipper, effort)
        else:
            _planned(video, _wanted(spec, video.start, video.unit), shipper, effort)
    if effort.refused > MAX_BAD * effort.sent:
        raise BadVideo("decode", f"{effort.refused} of {effort.sent} packets are damaged: {effort.complaint}")
    return effort


def _wanted(spec: ClipSpec, start: int, unit: Fraction) -> list[int]:
    """Time stamp of each wanted moment; the small number absorbs the rounding of times that fall on a frame."""
    return [start + math.floor((spec.start_s + k / spec.fps) / float(unit) + 1e-6) for k in range(spec.frames)]


def _planned(video: Video, wanted: list[int], shipper: Shipper, effort: Effort) -> None:
    """The clip by seeking, and decoding only what its frames depend on."""
    with stage("demux"):
        packets, table = _collect(video, wanted)
    picks, needed = plan(table, wanted)
    rows: dict[int, list[int]] = {}
    for row, pick in enumerate(picks):
        rows.setdefault(table[pick][0], []).append(row)
    shipped: set[int] = set()

    # Exact for these two (a packet that nothing refers to is dropped); AV1's decoder gives wrong pictures under it.
    sparing = "NONREF" if video.context.name in ("h264", "hevc") else "DEFAULT"
    picked = set(picks)
    for i in needed:
        video.context.skip_frame = "DEFAULT" if i in picked else sparing
        _ship(_decode(video, packets[i], effort), rows, shipped, shipper)
    if len(shipped) < len(rows):  # what reordering still holds back comes out without decoding more
        video.context.skip_frame = "DEFAULT"
        _ship(_decode(video, None, effort), rows, shipped, shipper)
    _fill_gaps(rows, shipped, shipper, effort)


def _collect(video: Video, wanted: list[int]) -> tuple[list[Packet], Table]:
    """Packets in decode order, from the key frame at or before the first wanted time to the last wanted time.

    Containers that seek by decoding time land late: step back 1, 4, 16 ... seconds until the key frame is early enough.
    """
    assert video.start is not None
    earliest = min(video.start, wanted[0])
    back, second = 0, max(1, int(1 / video.unit))
    while True:
        at = max(wanted[0] - back, earliest)
        video.container.seek(at, backward=True, stream=video.stream)
        packets: list[Packet] = []
        table: Table = []
        for packet in video.container.demux(video.stream):
            if packet.size == 0 or not (packets or packet.is_keyframe):
                continue
            if packet.pts is None:
                raise BadVideo("demux", "a packet has no time stamp")
            packets.append(packet)
            table.append((packet.pts, packet.is_keyframe, packet.is_discard))
            if table[0][0] > wanted[0] and at > earliest:
                break  # landed late
            if (packet.pts if packet.dts is None else packet.dts) > wanted[-1]:
                break  # dts <= pts: nothing that follows is displayed earlier
            if len(packets) > MAX_PACKETS:
                raise BadVideo("demux", f"more than {MAX_PACKETS} packets between a key frame and the end of the clip")
        if at <= earliest or (table and table[0][0] <= wanted[0]):
            return packets, table
        back = max(second, back * 4)


def plan(table: Table, wanted: list[int]) -> tuple[list[int], list[int]]:
    """Which packet is on display at each wanted time, and which packets these depend on, in decode order.

    Raises:  BadVideo if nothing is displayed.
    """
    displayed = sorted((pts, i) for i, (pts, _, hidden) in enumerate(table) if not hidden)
    if not displayed:
        raise BadVideo("demux", "no frame is displayed in or before the clip")
    stamps = [pts for pts, _ in displayed]
    picks = [displayed[max(bisect_right(stamps, time) - 1, 0)][1] for time in wanted]

    keys = [i for i, (_, is_key, _) in enumerate(table) if is_key]
    needed = [False] * len(table)
    picked = set(picks)
    for pick in picked:
        group = bisect_right(keys, pick) - 1
        while group > 0 and table[keys[group]][0] > table[pick][0]:
            group -= 1  # displayed before its key frame (open group of pictures): refers to the group before
        needed[keys[group] : pick + 1] = [True] * (pick + 1 - keys[group])

    for key, following in zip(keys, [*keys[1:], len(table)], strict=True):
        if needed[key] and (key == 0 or not needed[key - 1]):
            for i in range(key + 1, following):  # such pictures would refer to a group that was not decoded
                needed[i] = needed[i] and (table[i][0] > table[key][0] or i in picked)
    return picks, [i for i, is_needed in enumerate(needed) if is_needed]


def _decode(video: Video, packet: Packet | None, effort: Effort) -> list[VideoFrame]:
    """Frames that one packet (None: the end) brings out, without those that the decoder knows to be corrupt."""
    effort.sent += packet is not None
    try:
        frames = video.context.decode(packet)
    except EOFError:
        return []
    except (FFmpegError, OSError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise
        effort.refused += 1
        effort.complaint = plain(error)
        return []
    effort.decoded += len(frames)
    for frame in frames:
        if frame.width * frame.height > MAX_PIXELS:
            raise BadVideo("decode", f"a frame of {frame.width} x {frame.height} exceeds {MAX_PIXELS} pixels")
    return [frame for frame in frames if not frame.is_corrupt]


def _ship(frames: list[VideoFrame], rows: dict[int, list[int]], shipped: set[int], shipper: Shipper) -> None:
    """Convert those frames that rows wait for, by time stamp."""
    for frame in frames:
        if frame.pts in rows and frame.pts not in shipped:
            with stage("convert"):
                shipper.ship(frame, rows[frame.pts])
            shipped.add(frame.pts)


def _fill_gaps(rows: dict[int, list[int]], shipped: set[int], shipper: Shipper, effort: Effort) -> None:
    """Let rows whose frame did not come out repeat the one before (the first: the one after)."""
    if not shipped:
        raise BadVideo("decode", f"none of {len(rows)} frames came out: {effort.complaint}")
    latest = rows[min(shipped)][0]
    for pts in sorted(rows):
        if pts in shipped:
            latest = rows[pts][0]
            continue
        for row in rows[pts]:
            shipper.repeat(row, latest)
            effort.missing += 1
    total = sum(map(len, rows.values()))
    if effort.missing > MAX_BAD * total:
        raise BadVideo("decode", f"{effort.missing} of {total} frames did not come out: {effort.complaint}")


def _linear(video: Video, spec: ClipSpec, shipper: Shipper, effort: Effort) -> None:
    """The clip by decoding everything from the first packet on: slow, but right where seeks or time stamps are not."""
    in_order = video.container.format.name == "avi"  # its time stamps belong to packets by rank: it knows no B-frames
    stamps: list[int] = []
    time, row = 0, 0
    wanted: list[int] = []
    on_display: VideoFrame | None = None
    with stage("demux"):
        for packet in video.packets():
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None and packet.size:
                heappush(stamps, stamp)
            for frame in _decode(video, packet, effort):
                rank = heappop(stamps) if stamps else time + 1
                if frame.pts is None and not in_order:
                    continue  # before the start: Matroska cannot store a negative stamp
                time = rank if in_order or frame.pts is None else frame.pts
                wanted = wanted or _wanted(spec, time, video.unit)
                due = [k for k in range(row, spec.frames) if wanted[k] < time]
                if on_display is not None and due:
                    with stage("convert"):
                        shipper.ship(on_display, due)
                    row = due[-1] + 1
                if row == spec.frames:
                    return
                on_display = frame
    if on_display is None:
        raise BadVideo("decode", f"no frame came out: {effort.complaint}")
    with stage("convert"):
        shipper.ship(on_display, list(range(row, spec.frames)))


def probe(file: int | str) -> Probe:
    """Count and time every displayed frame without decoding it; decode the first one, so that garbage is found early.

    Raises:  BadVideo; MemoryError, after which the process should end.
    """
    with opened(file) as video:
        effort = Effort()
        first: VideoFrame | None = None
        stamps: list[tuple[int, int]] = []
        with stage("demux"):
            for packet in video.packets():
                if first is None and effort.sent < MAX_PACKETS:
                    first = next(iter(_decode(video, packet, effort)), None)
                stamp = packet.dts if packet.pts is None else packet.pts
                if packet.size and not packet.is_discard and stamp is not None:
                    stamps.append((stamp, packet.duration or 0))
        if not stamps:
            raise BadVideo("demux", "no frame is displayed")
        if first is None:
            raise BadVideo("decode", f"no frame can be decoded: {effort.complaint}")
        return _probed(video, first, stamps)


def _probed(video: Video, first: VideoFrame, stamps: list[tuple[int, int]]) -> Probe:
    (start, _), (last, duration) = min(stamps), max(stamps)
    span_s = float((last - start) * video.unit)
    fps = (len(stamps) - 1) / span_s if span_s > 0 else float(video.stream.average_rate or USUAL_FPS)
    return Probe(
        container=video.container.format.name,
        codec=video.context.name,
        width=first.width,
        height=first.height,
        rotation=quarter_turns(first.rotation) * 90,
        fps=fps,
        duration_s=span_s + (float(duration * video.unit) or 1 / fps),
        frames=len(stamps),
        start_pts=start,
        time_base=(video.unit.numerator, video.unit.denominator),
        pix_fmt=first.format.name,
    )

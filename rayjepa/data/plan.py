"""Which packets one clip depends on, decided without decoding: demuxing costs microseconds. The child imports this: av.

Which frame is on display at each wanted time, and which packets must be decoded to see it.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction

from av.packet import Packet

from rayjepa.data.clip import ClipSpec
from rayjepa.data.container import LONGEST_REORDER, Video, demuxed
from rayjepa.data.video import BadVideo

Table = list[tuple[int, bool, bool]]
"""Packets in decode order: time stamp, can decoding begin here, is it decoded but never displayed (before an edit)."""
IN_ORDER = ("vp8", "vp9", "libdav1d", "mjpeg", "prores", "dnxhd", "ffv1", "theora")
"""Decoders whose packets come in the order of display."""
RECOVERY_POINT = 6
"""Type of that SEI message in H.264."""


def wanted_times(spec: ClipSpec, start: int, unit: Fraction) -> list[int]:
    """Time stamp of each wanted moment; the small number absorbs the rounding of times that fall on a frame."""
    return [start + math.floor((spec.start_s + k / spec.fps) / float(unit) + 1e-6) for k in range(spec.frames)]


def collect(video: Video, wanted: list[int]) -> tuple[list[Packet], Table]:
    """Packets in decode order, from the key frame at or before the first wanted time to the last wanted time.

    Containers that seek by decoding time land late: step back 1, 4, 16 ... seconds until the key frame is early enough.
    Raises:  BadVideo if there are more than the limit, or their times are not known.
    """
    assert video.start is not None
    earliest = min(video.start, wanted[0])
    back, second = 0, max(1, int(1 / video.unit))
    is_vp8 = video.context.name == "vp8"
    while True:
        at = max(wanted[0] - back, earliest)
        video.container.seek(at, backward=True, stream=video.stream)
        packets: list[Packet] = []
        table: Table = []
        for packet in demuxed(video.container, video.stream):
            if packet.size == 0:
                continue
            pts = packet.pts
            if pts is None:
                raise BadVideo("demux", "a packet has no time stamp")
            is_entry = packet.is_keyframe and is_clean(video, packet)
            if not (packets or is_entry):
                if at > earliest and pts > wanted[0]:
                    break  # landed on a key frame that is none: no use to look further
                continue
            packets.append(packet)
            table.append((pts, is_entry, packet.is_discard or (is_vp8 and is_unseen(packet))))
            if table[0][0] > wanted[0] and at > earliest:
                break  # landed late
            if pts > wanted[-1] and is_beyond(video, packet, wanted[-1], table):
                break
            if len(packets) > video.limits.packets:
                raise BadVideo(
                    "demux",
                    f"from a key frame to the end of the clip there are more than data.max_packets="
                    f"{video.limits.packets} packets",
                )
        if at <= earliest or (table and table[0][0] <= wanted[0]):
            return packets, table
        back = max(second, back * 4)


def is_beyond(video: Video, packet: Packet, last: int, table: Table) -> bool:
    """Whether no packet after this one, which is displayed after `last`, is displayed at or before it."""
    if packet.is_discard:  # what an edit hides is not in order
        return False
    if video.has_dts and packet.dts is not None:
        return packet.dts > last  # a frame is decoded no later than it is displayed
    if video.context.name in IN_ORDER:
        return True
    return sum(pts > last for pts, _, hidden in table if not hidden) >= LONGEST_REORDER


def reorder_depth(table: Table) -> int:
    """Frames that are decoded before one that is displayed before them, at most: what the decoder must hold back."""
    order = sorted(range(len(table)), key=lambda i: table[i][0])
    return max(i - rank for rank, i in enumerate(order))


def is_unseen(packet: Packet) -> bool:
    """Whether a packet of VP8 shows nothing: pictures that are only referred to come on their own.

    Source:  RFC 6386, section 9.1: bit 4 of the first byte is show_frame.
    """
    return not memoryview(packet)[0] & 0x10


def is_clean(video: Video, packet: Packet) -> bool:
    """Whether decoding may begin at this key packet: in H.264 it may be the start of a gradual refresh instead.

    Source:  ITU-T H.264, sections 7.3.1 (types of NAL unit) and D.1.8 (recovery point).
    """
    if video.context.name != "h264":
        return True
    for kind, content in _units(video, memoryview(packet)):
        match kind:
            case 6:
                frames = _recovery_frames(bytes(content[1:]))
                if frames is not None:
                    return frames == 0
            case 1 | 2 | 5:
                return True
            case _:
                pass
    return True


def _units(video: Video, content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and bytes of each NAL unit of H.264, by length (mp4, Matroska) or start code."""
    header = video.context.extradata
    if header and header[0] == 1 and len(header) > 4:
        size, at = (header[4] & 3) + 1, 0
        while at + size < len(content):
            count = int.from_bytes(content[at : at + size])
            unit = content[at + size : at + size + count]
            if not len(unit):
                return
            yield unit[0] & 31, unit
            at += size + count
        return
    for unit in bytes(content).split(b"\0\0\1")[1:]:
        if unit:
            yield unit[0] & 31, memoryview(unit)


def _recovery_frames(messages: bytes) -> int | None:
    """Frames until the picture is whole, by the recovery point among these SEI messages; none: there is none."""
    at = 0
    while at + 2 < len(messages):
        numbers: list[int] = []
        for _ in ("type", "size"):
            number = 0
            while at < len(messages) and messages[at] == 0xFF:
                number, at = number + 0xFF, at + 1
            if at >= len(messages):
                return None
            numbers.append(number + messages[at])
            at += 1
        if numbers[0] == RECOVERY_POINT:
            bits = "".join(f"{byte:08b}" for byte in messages[at : at + numbers[1]])
            zeros = len(bits) - len(bits.lstrip("0"))  # unsigned Exp-Golomb
            return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1
        at += numbers[1]
    return None


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

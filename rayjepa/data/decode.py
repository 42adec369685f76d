"""From an open file to the frames of its clips, decoding as little as possible. The child imports this: av, numpy.

A clip is first planned on packets alone: which frame is on display at each wanted time, which packets those frames
depend on. Only these go through FFmpeg, on one thread, and once for all clips that need them; each wanted frame passes
at once through one crop-and-scale graph into the caller's memory. Every frame is equal, byte for byte, to that of a
decode from the first packet on, except that a packet nothing refers to is not decoded.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from av.packet import Packet
from av.video.frame import VideoFrame

from rayjepa.data.clip import ClipSpec, Limits
from rayjepa.data.container import Video, opened, stage
from rayjepa.data.convert import quarter_turns
from rayjepa.data.filling import END_OF_TIME, MAX_BAD, Filling, reading
from rayjepa.data.frames import Effort, decode_packet
from rayjepa.data.plan import Table, reorder_depth
from rayjepa.data.storage.keys import LARGE, index_of, size_of, thinned
from rayjepa.data.storage.paged import Paged
from rayjepa.data.video import IMAGES, BadVideo, Probe

__all__ = ["MAX_BAD", "USUAL_FPS", "Effort", "decode_clip", "decode_clips", "probe"]

USUAL_FPS = 25
"""Frame rate of a video that does not say its own."""


def decode_clip(file: int | str | Paged, spec: ClipSpec, out: Any, limits: Limits = Limits()) -> Effort:
    """Fill `out` with the clip that `spec` describes; return what it took.

    Shapes:  out is writable memory of spec.nbytes bytes: frames x canvas, I420 (x 3/2) or RGB (x 3).
    Raises:  BadVideo; MemoryError, after which the process should end.
    """
    effort = decode_clips(file, [spec], [out], limits)[0]
    if isinstance(effort, BadVideo):
        raise effort
    return effort


def decode_clips(
    file: int | str | Paged, specs: Sequence[ClipSpec], outs: Sequence[Any], limits: Limits = Limits()
) -> list[Effort | BadVideo]:
    """Fill each of `outs` with its clip of one file; return what each took, or why it fails where others do not.

    What several clips depend on is decoded once. The bytes are those of each clip decoded alone.
    Shapes:  each of outs is writable memory of spec.nbytes bytes: frames x canvas, I420 (x 3/2) or RGB (x 3).
    Raises:  BadVideo if the file gives no clip at all; MemoryError, after which the process should end.
    """
    with opened(file, limits) as video:
        clips = [Filling(spec, out, video) for spec, out in zip(specs, outs, strict=True)]
        in_line = [clip for clip in clips if video.start is None or clip.spec.seek == "linear"]
        if in_line:  # first: it begins where the file is opened
            _read(video, in_line)
        planned = [clip for clip in clips if clip not in in_line]
        for clip in planned:
            with clip.attempt():
                clip.plan(video)
        for i, part in enumerate(_passes([clip for clip in planned if clip.failure is None])):
            if i:
                video.context.flush_buffers()
            part.run(video)
    return [clip.outcome() for clip in clips]


class _Pass:
    """Clips of which each shares packets with one before: decoded in one go."""

    def __init__(self, clip: Filling) -> None:
        self.packets: list[Packet] = list(clip.packets)
        self.table: Table = list(clip.table)
        self.clips = [(0, clip)]
        """With the place of each clip's first packet."""
        self._places = {pts: i for i, (pts, _, _) in enumerate(self.table)}

    def joins(self, clip: Filling) -> bool:
        """Whether a clip that begins no earlier shares packets with this pass; it is then part of it."""
        at = self._places.get(clip.table[0][0])
        if at is None:
            return False
        shared = self.table[at : at + len(clip.table)]
        if shared != clip.table[: len(shared)]:
            return False
        for i in range(len(shared), len(clip.table)):
            self._places[clip.table[i][0]] = len(self.table)
            self.packets.append(clip.packets[i])
            self.table.append(clip.table[i])
        self.clips.append((at, clip))
        return True

    def run(self, video: Video) -> None:
        """Decode what the clips depend on, each packet once, and ship what they wait for."""
        owners: dict[int, list[Filling]] = {}
        for at, clip in self.clips:
            for i in clip.needed:
                owners.setdefault(at + i, []).append(clip)
        picked = {at + pick for at, clip in self.clips for pick in clip.picks}
        everyone = [clip for _, clip in self.clips]
        sparing = video.sparing
        video.hold_back(reorder_depth(self.table))
        try:
            for i in sorted(owners):
                if i and i - 1 not in owners and self.table[i][1]:
                    # A key frame after a gap is to the decoder like the first: what it knew of the frames before could
                    # make it take those behind an open group's key frame for broken, or too late to show.
                    self._drain(video, everyone)
                    video.context.flush_buffers()
                video.context.skip_frame = "DEFAULT" if i in picked else sparing
                self._send(video, self.packets[i], owners[i], everyone)
            self._drain(video, everyone)
        except BadVideo as error:
            for clip in everyone:
                if clip.is_waiting:
                    clip.fail(error)
        for clip in everyone:
            if clip.failure is None:
                with clip.attempt():
                    clip.fill_gaps()

    def _drain(self, video: Video, clips: list[Filling]) -> None:
        """What reordering still holds back comes out without decoding more."""
        waiting = [clip for clip in clips if clip.is_waiting]
        if waiting:
            video.context.skip_frame = "DEFAULT"
            self._send(video, None, waiting, waiting)

    def _send(self, video: Video, packet: Packet | None, owners: list[Filling], takers: list[Filling]) -> None:
        tally = Effort()
        frames = decode_packet(video, packet, tally)
        owners[0].effort.decoded += tally.decoded
        for clip in owners:
            clip.effort.sent += tally.sent
            if tally.refused:
                clip.effort.refused += 1
                clip.effort.complaint = tally.complaint
        for frame in frames:
            for clip in takers:
                if frame.pts is not None and frame.pts in clip.rows:
                    clip.take(frame.pts, frame)


def _passes(clips: list[Filling]) -> list[_Pass]:
    """The fewest passes in which no packet is decoded twice."""
    passes: list[_Pass] = []
    for clip in sorted(clips, key=lambda clip: clip.wanted[0]):
        if not (passes and passes[-1].joins(clip)):
            passes.append(_Pass(clip))
    return passes


def _read(video: Video, clips: list[Filling]) -> None:
    """Clips by decoding everything from the first packet on, up to the last frame that one of them wants."""
    for waiting in reading(video, clips, Effort()):
        if not waiting:
            return


def probe(file: int | str | Paged, limits: Limits = Limits()) -> Probe:
    """Count and time every displayed frame without decoding it; decode the first one, so that garbage is found early.

    Raises:  BadVideo; MemoryError, after which the process should end.
    """
    with opened(file, limits) as video:
        effort = Effort()
        first: VideoFrame | None = None
        key: int | None = None
        stamps: list[tuple[int, int]] = []
        keys: list[tuple[int, int]] = []
        with stage("demux"):
            for packet in video.packets():
                if first is None and effort.sent < limits.packets:
                    whole = (frame for frame in decode_packet(video, packet, effort) if not frame.is_corrupt)
                    first = next(whole, None)
                stamp = packet.dts if packet.pts is None else packet.pts
                if key is None and packet.is_keyframe:  # what comes before the first key frame cannot be decoded
                    key, stamps = -END_OF_TIME if stamp is None else stamp, []
                if packet.size and not packet.is_discard and stamp is not None and (key is None or stamp >= key):
                    stamps.append((stamp, packet.duration or 0))
                    if packet.is_keyframe and packet.pos is not None:
                        keys.append((stamp, packet.pos))
        if not stamps:
            raise BadVideo("demux", "no frame is displayed")
        if first is None:
            raise BadVideo("decode", f"no frame can be decoded: {effort.complaint}")
        found = _probed(video, first, stamps)
    if found.seek == "linear" or found.container in IMAGES or size_of(file) <= LARGE:
        return found
    return _with_places(found, file, keys, limits)


def _with_places(found: Probe, file: int | str | Paged, keys: list[tuple[int, int]], limits: Limits) -> Probe:
    """The probe of a large video, and where its index and key frames lie, if that can be said."""
    unit = found.time_base[0] / found.time_base[1]
    places = thinned([((stamp - found.start_pts) * unit, at) for stamp, at in keys])
    index = None if isinstance(file, str) else index_of(file, limits)
    if places is None or index is None:
        return found
    return replace(found, head=index[0], tail=index[1], key_s=places[0], key_bytes=places[1])


def _probed(video: Video, first: VideoFrame, stamps: list[tuple[int, int]]) -> Probe:
    (start, _), (last, duration) = min(stamps), max(stamps)
    span_s = float((last - start) * video.unit)
    fps = (len(stamps) - 1) / span_s if span_s > 0 else float(video.stream.average_rate or USUAL_FPS)
    return Probe(
        container=video.container.format.name,
        codec=video.context.codec.canonical_name,
        width=first.width,
        height=first.height,
        rotation=quarter_turns(first.rotation) * 90,
        fps=fps,
        duration_s=span_s + (float(duration * video.unit) or 1 / fps),
        frames=len(stamps),
        start_pts=start,
        time_base=(video.unit.numerator, video.unit.denominator),
        pix_fmt=first.format.name,
        seek="linear" if video.start is None and not video.is_image else "planned",
    )

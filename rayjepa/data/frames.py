"""From packets to frames, whatever the decoder says of a packet. The child imports this: av."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from rayjepa.data.clip import Layout
from rayjepa.data.container import Video, check_pixels, plain, stage


@dataclass(slots=True, kw_only=True)
class Effort:
    """What one clip took."""

    sent: int = 0
    """Packets sent to the decoder that the clip depends on."""
    decoded: int = 0
    """Frames that came out of the decoder; of those that several clips need, each counts for one clip."""
    refused: int = 0
    """Packets that the decoder refused."""
    missing: int = 0
    """Frames of the clip that repeat another, because their own did not come out."""
    complaint: str = "the decoder said nothing"
    """What the decoder said of the last packet that it refused."""
    layout: Layout | None = None
    """How the clip lies in its memory; none until a frame was shipped."""


def decode_packet(video: Video, packet: Packet | None, effort: Effort) -> list[VideoFrame]:
    """Frames that one packet (None: the end) brings out; the caller passes over those with `is_corrupt`.

    Raises:  BadVideo if one is larger than is allowed.
    """
    effort.sent += packet is not None and packet.size > 0
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
        check_pixels("decode", frame.width, frame.height, video.limits)
    return frames


def in_order(video: Video, effort: Effort) -> Iterator[tuple[int, VideoFrame]]:
    """Every frame from the first packet on with its time, in the order of display: slow, and right for any file."""
    # Stamps of AVI, and of ASF that FFmpeg wrote, belong to packets by rank: these formats know no B-frames.
    by_rank = video.container.format.name in ("avi", "asf")
    stamps: list[int] = []
    time = 0
    with stage("demux"):
        for packet in video.packets():
            stamp, refused = packet.dts if packet.pts is None else packet.pts, effort.refused
            if stamp is not None and packet.size:
                heappush(stamps, stamp)
            frames = decode_packet(video, packet, effort)
            if effort.refused > refused and stamp in stamps:  # no frame will come for it
                stamps.remove(stamp)
                heapify(stamps)
            for frame in frames:
                rank = heappop(stamps) if stamps else time + 1
                if frame.is_corrupt or (frame.pts is None and not by_rank):
                    continue  # not known: before the start, since Matroska cannot store a negative stamp
                time = rank if by_rank or frame.pts is None else frame.pts
                yield time, frame

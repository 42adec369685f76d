"""An open video or image: what FFmpeg may do with it, and what is said if it cannot be read. The child imports this."""

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import Literal

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from rayjepa.data.clip import Limits
from rayjepa.data.storage.paged import Paged, is_readable
from rayjepa.data.video import IMAGES, BadVideo, Kind, Stage, open_file

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
"""Demuxers allowed: none of them (hls, concat, dash, image lists) opens further files."""
CODECS = (
    "h264,hevc,vp8,vp9,libdav1d,mpeg1video,mpeg2video,mpeg4,msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,h263,h263p,"
    "flv,theora,mjpeg,prores,dnxhd,ffv1"
)
"""Decoders allowed, by FFmpeg's name: what videos are made with. None of FFmpeg's other hundreds is reached."""
CHEAP = {"probesize": "65536", "analyzeduration": "0", "skip_frame": "all"}
"""Options for files whose headers say enough: no frame is decoded at open (mp4 at 1080p: 34 -> 2 ms)."""
LONGEST_REORDER = 17
"""Packets among which the frame displayed first is: H.264 and HEVC hold back at most 16."""
STRICT = {"err_detect": "crccheck+explode"}
"""Options of an image's decoder: one that is cut short is refused; a video's decoder conceals what it can."""
MOV_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
EBML = b"\x1a\x45\xdf\xa3"
"""What Matroska begins with."""
READ_ERRORS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN}
"""What a disk or mount answers when it, not the file, is at fault."""
WIDEST = 16
"""Most that pixels may be wider than high, or higher than wide; a file that claims more is not believed."""
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Streams that are pictures of a file and not its video: cover art, thumbnails."""


@contextmanager
def stage(name: Stage) -> Generator[None, None, None]:
    """Turn whatever FFmpeg raises within into a BadVideo of this stage; MemoryError passes, the process is spent."""
    try:
        yield
    except MemoryError:
        raise
    except (FFmpegError, OSError, ValueError, EOFError, LookupError) as error:
        number = getattr(error, "errno", None)
        kind: Kind = "io" if number in READ_ERRORS else "content"
        raise BadVideo(name, plain(error), kind) from error


def plain(error: Exception) -> str:
    """FFmpeg's last word on an error, if it has logged one; else the error's text."""
    log = getattr(error, "log", None)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    said = log[2].strip().lstrip(", ") if log else ""  # it may be the end of a sentence
    return f"{said} ({text})" if said else str(text)


@dataclass(frozen=True, slots=True)
class Video:
    """The video stream of an open file, ready to decode on one thread."""

    file: int | Paged
    """The descriptor that it is read by, or what stands for one."""
    container: InputContainer
    stream: VideoStream
    limits: Limits
    unit: Fraction
    """Seconds per unit of the stream's time stamps."""
    start: int | None
    """Time stamp of the first displayed frame, if seeks are exact; None: read from the first packet on."""
    peeked: tuple[Packet, ...]
    """First packets, if they had to be read to know the start."""

    @property
    def context(self) -> VideoCodecContext:
        return self.stream.codec_context

    @property
    def is_image(self) -> bool:
        """Whether it is one picture: the first in the file."""
        return kind_of(self.container) == "image"

    @property
    def has_dts(self) -> bool:
        """Whether decoding times of packets are known; FFmpeg guesses those of Matroska from frames that it decoded."""
        return kind_of(self.container) != "matroska"

    @property
    def stretch(self) -> Fraction:
        """Width of a coded pixel over its height; 1 if the file does not say, or cannot be right.

        Nor is it believed of an image: what a JPEG says is dots per inch, which no viewer heeds.
        """
        ratio = None if self.is_image else self.stream.sample_aspect_ratio
        return Fraction(ratio) if ratio and Fraction(1, WIDEST) <= ratio <= WIDEST else Fraction(1)

    @property
    def sparing(self) -> Literal["NONREF", "DEFAULT"]:
        """How to send a packet whose own frame is not wanted: so that it is dropped if nothing refers to it.

        Not in AV1, whose decoder then gives wrong pictures; nor in HEVC with temporal layers, where a picture that its
        own layer does not refer to may serve a higher one. VP9 and others know no such packets.
        """
        match self.context.name:
            case "h264":
                return "NONREF"
            case "hevc":
                return "NONREF" if _temporal_layers(self.context.extradata) == 1 else "DEFAULT"
            case _:
                return "DEFAULT"

    def hold_back(self, frames: int) -> None:
        """Have H.264's decoder wait for so many frames before it lets one go.

        Where the stream does not say how far it reorders, the decoder learns it by dropping frames that come too late.
        """
        if self.context.name == "h264":
            self.context.reorder_depth = min(max(self.context.reorder_depth, frames), LONGEST_REORDER - 1)

    def packets(self) -> Iterator[Packet]:
        """Every packet from the first on, and an empty one that flushes the decoder; instead of a seek, and once.

        Of an image the first alone: others are previews, or depth.
        """
        if self.is_image:
            return islice(demuxed(self.container, self.stream), 1)
        if not self.has_dts:
            self.hold_back(LONGEST_REORDER)
        return chain(self.peeked, demuxed(self.container, self.stream))


def demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Packets from where the container stands; whoever has enough may drop this.

    PyAV loses 155 bytes for each iterator that is dropped before its end and was not closed; ours closes it.
    """
    yield from container.demux(stream)


def _temporal_layers(header: bytes | None) -> int:
    """Of HEVC in mp4 or Matroska; 0: not said.

    Source:  HEVCDecoderConfigurationRecord, ISO/IEC 14496-15, section 8.3.3.1.2.
    """
    return header[21] >> 3 & 7 if header and len(header) > 22 and header[0] == 1 else 0


@contextmanager
def opened(file: int | str | Paged, limits: Limits = Limits()) -> Generator[Video, None, None]:
    """The video in an open file or at a path; closed at the end.

    FFmpeg gets a descriptor and no other protocol, so that nothing in the file can reach another file or host.
    Raises:  BadVideo, also if the file claims more than `limits`.
    """
    source = open_file(file) if isinstance(file, str) else file
    try:
        with stage("open"):
            container = _open(source, limits)
        try:
            yield _video(source, container, limits)
        finally:
            container.close()  # an unclosed container is never freed
        if isinstance(source, Paged) and source.failure is not None:
            raise source.failure  # whatever was made of what did not come
    except BadVideo as error:
        if isinstance(source, Paged) and source.failure is not None and error is not source.failure:
            raise source.failure from error
        if error.kind == "io" and is_readable(source):
            error.kind = "content"
        raise
    finally:
        if isinstance(source, int) and isinstance(file, str):
            os.close(source)


def _open(file: int | Paged, limits: Limits) -> InputContainer:
    status = os.fstat(file.fd if isinstance(file, Paged) else file)
    if not stat.S_ISREG(status.st_mode):
        raise BadVideo("open", "not a regular file")
    size = file.size if isinstance(file, Paged) else status.st_size
    if size == 0:
        raise BadVideo("open", "empty file")
    if size > limits.file_bytes:
        allowed = f"data.max_file_gib={limits.file_bytes / 2**30:g}"
        raise BadVideo("open", f"a file of {size / 2**30:g} GiB is above {allowed}")
    options = {"protocol_whitelist": "fd", "format_whitelist": FORMATS, "codec_whitelist": CODECS}
    if isinstance(file, int):
        options["fd"] = str(file)
    head = os.pread(file, 12, 0) if isinstance(file, int) else file.pread(12, 0)
    image = next((name for name, (magic, at, _) in IMAGES.items() if head.startswith(magic, at)), None)
    if image is not None:
        options |= {"format_whitelist": image, "codec_whitelist": IMAGES[image][2]}
    if head[4:8] in MOV_BOXES or head[:4] == EBML or image:
        container = _begun(file, image, options | CHEAP)
        stream = _chosen(container)
        context = None if stream is None else stream.codec_context  # none: of a codec that is not on the list
        if kind_of(container) != "other" and (context is None or context.width):
            return container
        container.close()
    try:
        return _begun(file, image, options)
    except InvalidDataError as error:
        if error.log:
            raise
        raise BadVideo("open", "not a video of a known format") from error


def _begun(file: int | Paged, format: str | None, options: dict[str, str]) -> InputContainer:
    """The container, read from its first byte on: a reader goes on where the last one of the same file stopped."""
    if isinstance(file, Paged):
        file.seek(0)
        return av.open(file, "r", format=format, options=options, metadata_errors="replace")
    os.lseek(file, 0, os.SEEK_SET)
    return av.open("fd:", format=format, options=options, metadata_errors="replace")


def kind_of(container: InputContainer) -> Literal["mp4", "matroska", "image", "other"]:
    names = container.format.name.split(",")
    if names[0] in IMAGES:
        return "image"
    return "mp4" if "mp4" in names else "matroska" if "matroska" in names else "other"


def _chosen(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures."""
    return next((stream for stream in container.streams.video if not stream.disposition & NO_VIDEO), None)


def _video(file: int | Paged, container: InputContainer, limits: Limits) -> Video:
    stream = _chosen(container)
    if stream is None:
        raise BadVideo("open", "no video stream" + (" but a picture" if container.streams.video else ""))
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    context = stream.codec_context
    is_image = container.format.name in IMAGES
    codecs = IMAGES[container.format.name][2] if is_image else CODECS
    if context is None or context.codec.name not in codecs.split(","):
        name = "unknown" if context is None else context.codec.name
        raise BadVideo("open", f"codec {name} is not on the list of those that are read ({codecs})")
    context.thread_count, context.thread_type = 1, "SLICE"
    context.skip_frame = "DEFAULT"  # the cheap probe left it at "all"
    if is_image:
        context.options = STRICT
    if stream.time_base is None:
        raise BadVideo("open", "its time stamps have no unit")
    check_pixels("open", context.width, context.height, limits)
    lengths = [stream.duration * stream.time_base if stream.duration else 0, (container.duration or 0) / av.time_base]
    start, peeked = _start(container, stream)
    first = (start or 0) * stream.time_base if "matroska" in container.format.name else 0  # counts from stamp 0
    if max(lengths) - first > limits.video_s:
        allowed = f"data.max_video_h={limits.video_s / 3600:g}"
        raise BadVideo("open", f"a video of {float(max(lengths) - first) / 3600:.6g} h is above {allowed}")
    return Video(file, container, stream, limits, stream.time_base, start, peeked)


def check_pixels(name: Stage, width: int, height: int, limits: Limits) -> None:
    """Raises:  BadVideo of that stage if a frame of this size is larger than is allowed."""
    if width * height > limits.frame_pixels:
        raise BadVideo(name, f"a frame of {width} x {height} pixels is above data.max_frame_px={limits.frame_pixels}")


def _start(container: InputContainer, stream: VideoStream) -> tuple[int | None, tuple[Packet, ...]]:
    """Time stamp of the first displayed frame if seeks are exact, and the packets that had to be read to know it.

    Exact is mp4, and Matroska that starts properly. Seen elsewhere: MPEG-TS has other stamps after a seek, AVI with
    B-frames has wrong ones from the start.
    """
    match kind_of(container):
        case "mp4":
            return stream.start_time, ()
        case "image" | "other":
            return None, ()
        case "matroska":
            pass
    with stage("demux"):  # its header knows no start, and FFmpeg's guess is off if stamps are negative
        peeked = tuple(islice(demuxed(container, stream), LONGEST_REORDER))
    stamps = [packet.pts for packet in peeked if packet.size]
    known = [stamp for stamp in stamps if stamp is not None and stamp >= 0]
    is_proper = known and len(known) == len(stamps) and peeked[0].is_keyframe
    return (min(known) if is_proper else None), peeked

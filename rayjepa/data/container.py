"""An open video file: what FFmpeg may do with it, and what is said when it cannot be read. The child imports this."""

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Discard
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from rayjepa.data.video import BadVideo, Kind, Stage, open_file

MAX_PIXELS = 4096 * 2304
"""Pixels of a frame: DCI 4K and a little; a header that claims more is damage or an attack."""
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg"
"""Demuxers allowed: none of them (hls, concat, dash, image lists) opens further files."""
WHOLE = {"probesize": "65536", "analyzeduration": "0", "skip_frame": "all"}
"""Cheap probe of mp4 and mov, whose headers carry all timing: no frame is decoded at open (1080p: 34 -> 2 ms)."""
LONGEST_REORDER = 17
"""Packets among which the frame displayed first is: H.264 and HEVC hold back at most 16."""
MOV_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
READ_ERRORS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN}
"""What a disk or mount answers when it, not the file, is at fault."""


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
    return f"{log[2].strip()} ({text})" if log else str(text)


@dataclass(frozen=True, slots=True)
class Video:
    """The first video stream of an open file, ready to decode on one thread."""

    container: InputContainer
    stream: VideoStream
    unit: Fraction
    """Seconds per unit of the stream's time stamps."""
    start: int | None
    """Time stamp of the first displayed frame, if seeks are exact; None: read from the first packet on."""
    peeked: tuple[Packet, ...]
    """First packets, if they had to be read to know the start."""

    @property
    def context(self) -> VideoCodecContext:
        return self.stream.codec_context

    def packets(self) -> Iterator[Packet]:
        """Every packet from the first on, and an empty one that flushes the decoder; instead of a seek, and once."""
        return chain(self.peeked, self.container.demux(self.stream))


@contextmanager
def opened(file: int | str) -> Generator[Video, None, None]:
    """The video in an open file or at a path; closed at the end.

    FFmpeg gets a descriptor and no other protocol, so that nothing in the file can reach another file or host.
    """
    fd = open_file(file) if isinstance(file, str) else file
    try:
        with stage("open"):
            container = _open(fd)
        try:
            yield _video(container)
        finally:
            container.close()  # an unclosed container is never freed
    finally:
        if isinstance(file, str):
            os.close(fd)


def _open(fd: int) -> InputContainer:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise BadVideo("open", "not a regular file")
    if status.st_size == 0:
        raise BadVideo("open", "empty file")
    options = {"fd": str(fd), "protocol_whitelist": "fd", "format_whitelist": FORMATS}
    if os.pread(fd, 8, 0)[4:] in MOV_BOXES:
        container = av.open("fd:", options=options | WHOLE, metadata_errors="replace")
        if "mp4" in container.format.name and all(video.codec_context.width for video in container.streams.video):
            return container
        container.close()
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        return av.open("fd:", options=options, metadata_errors="replace")
    except InvalidDataError as error:
        if error.log:
            raise
        raise BadVideo("open", "not a video of a known format") from error


def _video(container: InputContainer) -> Video:
    if not container.streams.video:
        raise BadVideo("open", "no video stream")
    stream = container.streams.video[0]
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    context = stream.codec_context
    context.thread_count, context.thread_type = 1, "SLICE"
    context.skip_frame = "DEFAULT"  # the cheap probe left it at "all"
    if context.width * context.height > MAX_PIXELS:
        raise BadVideo("open", f"a frame of {context.width} x {context.height} exceeds {MAX_PIXELS} pixels")
    if stream.time_base is None:
        raise BadVideo("open", "its time stamps have no unit")
    # Seeks are exact in mp4, and in Matroska that starts properly. Seen elsewhere: MPEG-TS has other stamps after a
    # seek, AVI with B-frames has wrong ones from the start.
    start, peeked, names = None, (), container.format.name.split(",")
    if "mp4" in names:
        start = stream.start_time
    if "matroska" in names:  # its header knows no start, and FFmpeg's guess is off if stamps are negative
        with stage("demux"):
            peeked = tuple(islice(container.demux(stream), LONGEST_REORDER))
        stamps = [packet.pts for packet in peeked if packet.size]
        known = [stamp for stamp in stamps if stamp is not None and stamp >= 0]
        start = min(known) if known and len(known) == len(stamps) else None
    return Video(container, stream, stream.time_base, start, peeked)

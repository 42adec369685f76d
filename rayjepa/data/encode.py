"""A video made anew so that clips of it cost little to decode. The child imports this: av, numpy.

What is displayed stays: every frame at its time, upright, in its colours. What a clip does not need goes: sound, size
beyond a short side, long groups of pictures, arithmetic coding. Nothing refers to the frames between two key or P
frames, so that a planned decode passes over all of them but the wanted ones.
"""

import errno
import os
import time
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame

from rayjepa.data.clip import Limits
from rayjepa.data.container import Video, opened, stage
from rayjepa.data.decode import MAX_BAD, USUAL_FPS
from rayjepa.data.recipe import Recipe
from rayjepa.data.shown import Seen, displayed
from rayjepa.data.storage.paged import Paged
from rayjepa.data.upright import Upright
from rayjepa.data.video import BadVideo

MAX_DIFFERENCE = 8.0
"""Grey levels between what was shown and what is shown, on average over a thumbnail. Coding alone stays below 2."""
PLACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""The place that is written to is at fault, not the video."""
BUFFER = 1 << 18


class _File:
    """What FFmpeg writes to in place of a file: an open descriptor, with a position of its own."""

    def __init__(self, fd: int) -> None:
        self.name = "out.mp4"
        self.fd = fd
        self.at = 0
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        left = memoryview(content)
        try:
            while left:
                written = os.pwrite(self.fd, left, self.at)
                self.at += written
                left = left[written:]
        except OSError as error:
            self.error = error
            raise
        return len(content)

    def read(self, count: int) -> bytes:
        content = os.pread(self.fd, count, self.at)
        self.at += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: os.fstat(self.fd).st_size}[whence]
        self.at = start + offset
        return self.at

    def tell(self) -> int:
        return self.at


def encode(file: int | Paged, out: int, recipe: Recipe, limits: Limits = Limits()) -> dict[str, Any]:
    """Make the video in `file` anew in `out`, read that back, and return what it came to.

    Both are open, `out` as a descriptor for reading and writing; nothing else is opened. The answer holds `frames`,
    `dropped` (shown for no time), `refused` (packets of the source), `bytes`, `difference` (grey levels) and `cpu_s`;
    or `unwritten` alone: why `out` took no more, for which the video is not to blame.
    Raises:  BadVideo, also if what is read back is not what was shown; MemoryError, after which the process should end.
    """
    started = time.thread_time()
    os.ftruncate(out, 0)
    target, source = _File(out), Seen()
    try:
        with opened(file, limits) as video:
            _write(video, target, source, recipe)
    except (BadVideo, OSError) as error:
        if target.error is None:
            raise
        if target.error.errno in PLACE_ERRORS:
            return {"unwritten": str(target.error.strerror)}
        raise BadVideo("convert", f"what is made of it cannot be written: {target.error.strerror}") from error
    difference = _check(out, source, video.unit, limits)
    return {
        "frames": len(source.times),
        "dropped": source.dropped,
        "refused": source.effort.refused,
        "bytes": os.fstat(out).st_size,
        "difference": difference,
        "cpu_s": time.thread_time() - started,
    }


def _write(video: Video, target: _File, source: Seen, recipe: Recipe) -> None:
    """Every displayed frame, scaled and encoded; the first at time 0."""
    encoder: _Encoder | None = None
    with stage("convert"), _container(target) as container:
        for stamp, frame in displayed(video, source):
            encoder = encoder or _Encoder(container, video, stamp, frame, recipe)
            source.add(stamp - encoder.start, frame)
            encoder.take(stamp, frame)
        if encoder is None:
            raise BadVideo("decode", f"no frame came out: {source.effort.complaint}")
        if source.effort.refused > MAX_BAD * source.effort.sent:
            raise BadVideo(
                "decode",
                f"{source.effort.refused} of {source.effort.sent} packets are damaged: {source.effort.complaint}",
            )
        encoder.finish()


def _container(target: _File) -> OutputContainer:
    """An mp4 whose index goes to the front at the end, for which the muxer reads back what it has written."""

    def again(url: str, flags: int, options: dict[str, str]) -> _File:
        return _File(target.fd)

    options = {"movflags": "+faststart"}
    return av.open(target, "w", format="mp4", options=options, io_open=again, buffer_size=BUFFER)


class _Encoder:
    """Takes displayed frames and puts what becomes of them into the container; the first is at time 0."""

    def __init__(self, container: OutputContainer, video: Video, start: int, first: VideoFrame, recipe: Recipe) -> None:
        self.start = start
        self._container, self._unit = container, video.unit
        self._graph = graph = Upright(first, video.stretch, recipe.short_px)
        rate = video.stream.average_rate or USUAL_FPS
        self._stream = container.add_stream("libx264", rate=rate, options=recipe.options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = graph.width, graph.height, "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1
        context.time_base = video.unit
        context.colorspace, context.color_range = graph.matrix, graph.range
        context.color_primaries, context.color_trc = video.context.color_primaries, video.context.color_trc

    def take(self, stamp: int, frame: VideoFrame) -> None:
        picture = self._graph.scaled(frame)
        picture.pts, picture.time_base, picture.duration = stamp - self.start, self._unit, frame.duration
        picture.pict_type = PictureType.NONE  # the source's would force key frames
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


def _check(out: int, source: Seen, unit: Fraction, limits: Limits) -> float:
    """Grey levels by which what was written differs from what was shown.

    Raises:  BadVideo if frames, times or pictures are others.
    """
    made = Seen()
    os.lseek(out, 0, os.SEEK_SET)
    with opened(out, limits) as video:
        for stamp, frame in displayed(video, made):
            made.add(round(stamp * video.unit / unit), frame)
    difference, number = source.difference(made) if len(made.times) == len(source.times) else (0.0, 0)
    for holds, complaint in (
        (not made.effort.refused, f"{made.effort.refused} of its packets are damaged: {made.effort.complaint}"),
        (len(made.times) == len(source.times), f"{len(made.times)} frames instead of {len(source.times)}"),
        (made.times == source.times, "frames at other times"),
        (difference <= MAX_DIFFERENCE, f"frame {number} differs by {difference:.1f} grey levels"),
    ):
        if not holds:
            raise BadVideo("convert", f"what was made of it is wrong: {complaint}")
    return difference

"""What a video shows from its first packet to its last: every frame with its time, and a memory of them to compare by.

The child imports this: av, numpy.
"""

from array import array
from collections.abc import Iterator

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from rayjepa.data.container import Video
from rayjepa.data.convert import quarter_turns
from rayjepa.data.frames import Effort, in_order
from rayjepa.data.video import BadVideo

SAMPLES = 32
"""Pictures remembered at most: every frame's of a short video, else every second's, fourth's ..."""
THUMBNAIL = 8
"""Side of a remembered picture in pixels."""


class Seen:
    """Times of the frames that were shown, small pictures of some, and what was lost on the way."""

    def __init__(self) -> None:
        self.times = array("q")
        self.pictures: dict[int, NDArray[np.float32]] = {}
        self.dropped = 0
        """Frames shown for no time: the next has the same time, or an earlier one."""
        self.effort = Effort()
        self._stride = 1

    def add(self, time: int, frame: VideoFrame) -> None:
        """Remember one frame; the same number of frames leaves the same ones' pictures."""
        number = len(self.times)
        self.times.append(time)
        if number % self._stride:
            return
        self.pictures[number] = _thumbnail(frame)
        if len(self.pictures) > SAMPLES:
            self._stride *= 2
            self.pictures = {n: picture for n, picture in self.pictures.items() if n % self._stride == 0}

    def difference(self, other: "Seen") -> tuple[float, int]:
        """Grey levels between the two pictures that differ most, on average over their pixels; the number of the frame.

        Both must have seen equally many frames.
        """
        return max((float(np.abs(picture - other.pictures[n]).mean()), n) for n, picture in self.pictures.items())


def displayed(video: Video, seen: Seen) -> Iterator[tuple[int, VideoFrame]]:
    """Every displayed frame with its time in the stream's units, each later than the one before.

    Raises:  BadVideo if the file cannot be read, or shows more than is allowed.
    """
    first = last = None
    for time, frame in in_order(video, seen.effort):
        first = time if first is None else first
        if last is not None and time <= last:
            seen.dropped += 1
            continue
        if (time - first) * video.unit > video.limits.video_s:
            raise BadVideo("decode", f"it shows frames beyond data.max_video_h={video.limits.video_s / 3600:g}")
        last = time
        yield time, frame


def _thumbnail(frame: VideoFrame) -> NDArray[np.float32]:
    """Luma of the whole frame, upright, on a few pixels; swscale is inexact if it shrinks more than a hundredfold."""
    side = THUMBNAIL * THUMBNAIL
    small = frame.reformat(width=side, height=side, format="gray", interpolation="AREA", threads=1).to_ndarray()
    blocks = small.reshape(THUMBNAIL, THUMBNAIL, THUMBNAIL, THUMBNAIL).mean((1, 3), dtype=np.float32)
    return np.rot90(blocks, quarter_turns(frame.rotation))

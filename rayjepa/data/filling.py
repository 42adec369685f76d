"""A clip on its way from a file into its memory. The child imports this: av, numpy."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from rayjepa.data.clip import ClipSpec
from rayjepa.data.container import Video, stage
from rayjepa.data.convert import Shipper, siting_of
from rayjepa.data.frames import Effort, in_order
from rayjepa.data.plan import collect, plan, wanted_times
from rayjepa.data.storage.paged import is_readable
from rayjepa.data.video import BadVideo

MAX_BAD = 0.25
"""Share of a clip's frames that may be missing, and of its packets that may be refused, before the clip is."""
END_OF_TIME = 1 << 63


class Filling:
    """One clip on its way into its memory."""

    def __init__(self, spec: ClipSpec, out: Any, video: Video) -> None:
        self.spec, self.file = spec, video.file
        self.effort = Effort()
        self.failure: BadVideo | None = None
        rows = np.frombuffer(out, np.uint8, spec.nbytes).reshape(spec.frames, -1)
        self.shipper = Shipper(spec, rows, video.stretch, siting_of(video.context.name))
        self.wanted: list[int] = [] if video.start is None else wanted_times(spec, video.start, video.unit)
        self.rows: dict[int, list[int]] = {}
        """By time stamp of a frame, the rows that show it."""
        self.shipped: set[int] = set()
        self.reached = 0
        """Rows filled, in a read in the order of display."""

    @contextmanager
    def attempt(self) -> Generator[None, None, None]:
        """What fails within is this clip's failure, and nobody else's."""
        try:
            yield
        except BadVideo as error:
            self.fail(error)

    def fail(self, error: BadVideo) -> None:
        for raised in (error, error.__cause__):
            if raised is not None:
                raised.__traceback__ = None  # it holds the memory of clips, which the caller may want to unmap
        if error.kind == "io" and is_readable(self.file):
            error.kind = "content"
        self.failure = error

    def plan(self, video: Video) -> None:
        """Demux what the clip depends on, and decide what of it is decoded."""
        with stage("demux"):
            self.packets, self.table = collect(video, self.wanted)
        self.picks, self.needed = plan(self.table, self.wanted)
        for row, pick in enumerate(self.picks):
            self.rows.setdefault(self.table[pick][0], []).append(row)

    @property
    def is_waiting(self) -> bool:
        return self.failure is None and len(self.shipped) < len(self.rows)

    def take(self, pts: int, frame: VideoFrame) -> None:
        """Ship a frame to the rows of that time, if they still wait and it is whole."""
        if pts not in self.shipped and self.failure is None and not frame.is_corrupt:
            with self.attempt(), stage("convert"):
                self.shipper.ship(frame, self.rows[pts])
            self.shipped.add(pts)

    def advance(self, time: int, on_display: VideoFrame) -> bool:
        """Ship the frame on display until `time` to the rows that are due before; whether others still wait."""
        first = self.reached
        while self.reached < self.spec.frames and self.wanted[self.reached] < time:
            self.reached += 1
        if self.reached > first and self.failure is None:
            with self.attempt(), stage("convert"):
                self.shipper.ship(on_display, list(range(first, self.reached)))
        return self.failure is None and self.reached < self.spec.frames

    def fill_gaps(self) -> None:
        """Let rows whose frame did not come out repeat the one before (the first: the one after).

        Raises:  BadVideo if too many did not.
        """
        if not self.shipped:
            raise BadVideo("decode", f"none of {len(self.rows)} frames came out: {self.effort.complaint}")
        latest = self.rows[min(self.shipped)][0]
        for pts in sorted(self.rows):
            if pts in self.shipped:
                latest = self.rows[pts][0]
                continue
            for row in self.rows[pts]:
                self.shipper.repeat(row, latest)
                self.effort.missing += 1
        total = self.spec.frames
        if self.effort.missing > MAX_BAD * total:
            raise BadVideo(
                "decode", f"{self.effort.missing} of {total} frames did not come out: {self.effort.complaint}"
            )

    def outcome(self) -> Effort | BadVideo:
        effort = self.effort
        effort.layout = self.shipper.layout
        if self.failure is None and effort.refused > MAX_BAD * effort.sent:
            reason = f"{effort.refused} of {effort.sent} packets are damaged: {effort.complaint}"
            self.failure = BadVideo("decode", reason)
        return self.failure or effort


def reading(video: Video, clips: list[Filling], tally: Effort) -> Iterator[int]:
    """Fill clips by decoding everything from the first packet on; after each frame, how many of them still wait.

    Right for any file. Where it cannot go on, those that wait fail.
    """
    charged = 0
    on_display: VideoFrame | None = None
    waiting = list(clips)

    def step(time: int, frame: VideoFrame) -> None:
        nonlocal waiting, charged
        left: list[Filling] = []
        for clip in waiting:
            if clip.advance(time, frame):
                left.append(clip)
                continue
            effort = clip.effort
            effort.sent, effort.refused, effort.complaint = tally.sent, tally.refused, tally.complaint
            effort.decoded, charged = tally.decoded - charged, tally.decoded
        waiting = left

    try:
        for time, frame in in_order(video, tally):
            if on_display is None:
                for clip in clips:
                    clip.wanted = wanted_times(clip.spec, time, video.unit)
            else:
                step(time, on_display)
            yield len(waiting)
            on_display = frame
        if on_display is None:
            raise BadVideo("decode", f"no frame came out: {tally.complaint}")
        step(END_OF_TIME, on_display)
    except BadVideo as error:
        for clip in waiting:
            clip.fail(error)

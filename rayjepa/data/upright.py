"""Frames at another size, the way up in which they are displayed, in their own colours. The child imports this."""

from fractions import Fraction

from av.video.frame import VideoFrame

from rayjepa.data.clip import MATRICES
from rayjepa.data.convert import FULL_RANGE, KEPT, RANGES, colours, linked, quarter_turns, squared

SMPTE_170M = 6
"""Number in ITU-T H.273 of the BT.601 that colours become which are not kept as they are."""
SITING = "in_chroma_loc=left:out_chroma_loc=left"
"""Chroma stays where nearly all videos have it, and where a decoder of H.264 looks for it."""
TURNS: tuple[tuple[tuple[str, str | None], ...], ...] = (
    (),
    (("transpose", "cclock"),),
    (("hflip", None), ("vflip", None)),
    (("transpose", "clock"),),
)
"""Filters that turn a picture upright, by quarter turns counterclockwise."""


def fitted(width: int, height: int, stretch: Fraction, short_px: int) -> tuple[int, int]:
    """Even width and height with square pixels and at most `short_px` for the shorter, in the same proportion."""
    across, down = squared(width, height, stretch)
    if min(across, down) <= short_px:
        return max(across & ~1, 2), max(down & ~1, 2)
    scale = Fraction(short_px, min(across, down))
    return max(round(across * scale / 2) * 2, 2), max(round(down * scale / 2) * 2, 2)


class Upright:
    """Scales frames of one video to one size, turns them upright and keeps their colours."""

    def __init__(self, frame: VideoFrame, stretch: Fraction, short_px: int) -> None:
        self.turns = quarter_turns(frame.rotation)
        self._coded = fitted(frame.width, frame.height, stretch, short_px)
        self.width, self.height = self._coded[::-1] if self.turns % 2 else self._coded
        matrix, full_range = colours(frame)
        self._colours = f"out_range={RANGES[full_range]}:out_color_matrix={MATRICES[matrix]}"
        is_kept = int(frame.colorspace) in KEPT and not frame.format.is_rgb
        self.matrix = int(frame.colorspace) if is_kept else SMPTE_170M
        self.range = FULL_RANGE if full_range else 1
        self._shape: tuple[object, ...] = ()

    def scaled(self, frame: VideoFrame) -> VideoFrame:
        """One frame at the size, in the colours and upright."""
        shape = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if shape != self._shape:
            self._build(frame)
            self._shape = shape
        self._source.push(frame)
        return self._sink.pull()  # type: ignore[return-value]

    def _build(self, frame: VideoFrame) -> None:
        width, height = self._coded
        scale = ("scale", f"{width}:{height}:flags=bicubic+accurate_rnd:{self._colours}:{SITING}")
        filters = [scale, ("format", "yuv420p"), *TURNS[self.turns]]
        self._graph, self._source, self._sink = linked(frame, filters)

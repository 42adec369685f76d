"""From a decoded frame to what is shipped of it: crop, scale and rotate. The child imports this."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame

from rayjepa.data.clip import MATRICES, ClipSpec, Layout
from rayjepa.data.crop import coded_box, crop_box, even

KEPT = {1: 1, 2: 0, 5: 0, 6: 0, 9: 2, 10: 2}
"""Places in MATRICES of the luma weights that are shipped as they are, by their number in ITU-T H.273 (2: not said).

Only the RGB path of swscale could change them.
"""
RELABELLED = {3: 2, 10: 9}
"""Tags that libavfilter refuses: a reserved one says nothing, and BT.2020's two forms have the same weights."""
UNKNOWN = range(8, 256)
"""Tags of other colour systems (YCgCo, ICtCp ...), but for those of KEPT."""
FULL_RANGE = 2
RANGES = ("tv", "pc")
"""swscale's names of ranges, by `Layout.full_range`."""
RGB = "flags=bicubic+accurate_rnd+full_chroma_int"
"""The slow path of swscale: its fast one is 9 dB further from an antialiased resize of an exact RGB frame.

Into planes, which gives the same bytes as packed RGB in half the time.
"""
Siting = Literal["left", "center"]
"""Where chroma lies in the 2 x 2 luma pixels it is for: midway down the left edge, as MPEG-2 and all after it have it,
or in the middle, as JPEG, WebP and MPEG-1 do. It is shipped in the middle, which turning and mirroring leave alone."""


def quarter_turns(rotation: int) -> int:
    """Quarter turns counterclockwise from coded to displayed, 0 to 3, of a rotation in degrees."""
    return round(rotation / 90) % 4


class Shipper:
    """Writes frames of one clip into its rows: one filter graph for all, made anew only if the frames change shape.

    Shapes:  pictures (frames, bytes of one canvas), I420 or RGB as the spec says.
    Units:   `stretch` is the width of a coded pixel over its height.
    """

    def __init__(self, spec: ClipSpec, pictures: Any, stretch: Fraction = Fraction(1), siting: Siting = "left") -> None:
        self.spec = spec
        self.siting = siting
        self.pictures = pictures
        self.stretch = stretch
        self.layout: Layout | None = None
        """How the clip lies in its rows; known once a frame was shipped, and the same for all of them."""
        self._shape: tuple[object, ...] = ()
        self._turns = 0

    def ship(self, frame: VideoFrame, rows: list[int]) -> None:
        """Crop, scale and rotate one frame into each of these rows.

        Raises:  ValueError if it is too small, or in colours that are not known.
        """
        if int(frame.colorspace) in RELABELLED:
            frame.colorspace = RELABELLED[int(frame.colorspace)]
        shape = (frame.width, frame.height, frame.format.name, frame.rotation, frame.colorspace, frame.color_range)
        if shape != self._shape:
            self._build(frame)
            self._shape = shape
        self._source.push(frame)
        self._copy(self._sink.pull(), rows[0])
        for row in rows[1:]:
            self.repeat(row, rows[0])

    def repeat(self, row: int, source: int) -> None:
        """Fill row `row` with what row `source` shows."""
        self.pictures[row] = self.pictures[source]

    def _build(self, frame: VideoFrame) -> None:
        """The graph for frames like this one, and where its pictures go."""
        self._turns = quarter_turns(frame.rotation)
        if min(frame.width, frame.height) < 2:
            raise ValueError(f"a frame of {frame.width} x {frame.height} pixels is too small to crop")
        if int(frame.colorspace) in UNKNOWN and int(frame.colorspace) not in KEPT:
            raise ValueError(f"its colours follow matrix {int(frame.colorspace)} of ITU-T H.273, which swscale lacks")
        if self.layout is None:
            self.layout = self._laid(frame)
            self._targets = self._blank(self.layout)
        layout = self.layout
        width, height = (layout.height, layout.width) if layout.transposed else (layout.width, layout.height)
        if self._turns % 2:
            width, height = height, width
        how = f"flags=bicubic:out_range={RANGES[layout.full_range]}:out_color_matrix={MATRICES[layout.matrix]}"
        target, how = ("gbrp", RGB) if self.spec.pixels == "rgb" else ("yuv420p", f"{how}:out_chroma_loc=center")
        how = f"{how}:in_chroma_loc={self.siting}"
        filters = [*self._crop(frame), ("scale", f"{width}:{height}:{how}"), ("format", target)]
        self._graph, self._source, self._sink = linked(frame, filters)

    def _crop(self, frame: VideoFrame) -> list[tuple[str, str]]:
        """The crop in the coded frame, which is drawn in the displayed one with square pixels."""
        if self.spec.window.kind == "whole":
            return []
        across, down = squared(frame.width, frame.height, self.stretch)
        displayed = (down, across) if self._turns % 2 else (across, down)
        box = coded_box(crop_box(self.spec.window, *displayed), across, down, self._turns)
        x, w = _narrowed(box[0], box[2], across, frame.width)
        y, h = _narrowed(box[1], box[3], down, frame.height)
        return [("crop", f"{w}:{h}:{x}:{y}")]

    def _laid(self, frame: VideoFrame) -> Layout:
        """Colours and place of the clip, from its first frame."""
        matrix, full_range = (0, 0) if self.spec.pixels == "rgb" else colours(frame)
        height, width = self.spec.window.canvas
        if self.spec.window.kind == "crop":
            return Layout(matrix, full_range, height, width, 0)
        across, down = squared(frame.width, frame.height, self.stretch)
        if self._turns % 2:
            across, down = down, across
        long, short = max(across, down), min(across, down)
        scale = min(Fraction(width, long), Fraction(height, short))
        return Layout(matrix, full_range, _nearest(short * scale), _nearest(long * scale), int(down > across))

    def _blank(self, layout: Layout) -> list[Any]:
        """Where content goes in all rows, for each plane that the graph gives; what lies beyond it is made black.

        Shapes:  (frames, rows, columns) for each of Y, U, V or G, B, R.
        """
        count, (height, width) = self.spec.frames, self.spec.window.canvas
        if self.spec.pixels == "rgb":
            image = self.pictures.reshape(count, height, width, 3)
            image[:, layout.height :] = 0
            image[:, : layout.height, layout.width :] = 0
            return [image[:, : layout.height, : layout.width, channel] for channel in (1, 2, 0)]
        end = 0
        targets: list[Any] = []
        for part, black in ((1, 0 if layout.full_range else 16), (2, 128), (2, 128)):
            begin, end = end, end + height * width // part**2
            plane = self.pictures[:, begin:end].reshape(count, height // part, width // part)
            rows, columns = layout.height // part, layout.width // part
            plane[:, rows:] = black
            plane[:, :rows, columns:] = black
            targets.append(plane[:, :rows, :columns])
        return targets

    def _copy(self, frame: Any, row: int) -> None:
        """Planes into their places, each without its padding and the way up that it is displayed or laid."""
        transposed = self.layout is not None and self.layout.transposed
        for plane, target in zip(frame.planes, self._targets, strict=True):
            stride, height = plane.line_size, plane.height
            image = np.frombuffer(plane, np.uint8, stride * height).reshape(height, stride)[:, : plane.width]
            if self._turns:
                image = np.rot90(image, self._turns)
            target[row] = image.T if transposed else image


def siting_of(codec: str) -> Siting:
    """Where a codec has its chroma, unless a file says otherwise, which PyAV does not tell."""
    return "center" if codec in ("mjpeg", "webp", "mpeg1video", "h263", "h263p", "flv", "theora") else "left"


def linked(frame: VideoFrame, filters: Sequence[tuple[str, str | None]]) -> tuple[Graph, Any, Any]:
    """A graph of these filters (name, arguments) for frames like this one, with its source and its sink; one thread."""
    graph = Graph()
    graph.threads = 1  # the default is a thread pool of all CPUs per graph
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1",
        pixel_aspect="1/1",
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    nodes = [source, *(graph.add(name, how) for name, how in filters), graph.add("buffersink")]
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    return graph, nodes[0], nodes[-1]


def squared(width: int, height: int, stretch: Fraction) -> tuple[int, int]:
    """Width and height of a coded frame with square pixels: those that are not are made larger, not smaller."""
    if stretch == 1:
        return width, height
    return round(width * max(stretch, Fraction(1))), round(height / min(stretch, Fraction(1)))


def colours(frame: VideoFrame) -> tuple[int, int]:
    """Place in MATRICES and 1 for full range, as the frame is tagged; what is none of these becomes BT.601 limited."""
    if frame.format.is_rgb or int(frame.colorspace) not in KEPT:
        return 0, 0
    return KEPT[int(frame.colorspace)], int(int(frame.color_range) == FULL_RANGE or "yuvj" in frame.format.name)


def _nearest(side: Fraction) -> int:
    """The nearest even number, at least 2."""
    return max(round(side / 2) * 2, 2)


def _narrowed(first: int, count: int, squared_count: int, coded_count: int) -> tuple[int, int]:
    """Where an even stretch of square pixels lies among coded ones: even again, at least 2, and inside."""
    if squared_count == coded_count:
        return first, count
    scale = Fraction(coded_count, squared_count)
    count = min(_nearest(count * scale), even(coded_count))
    return min(round(first * scale / 2) * 2, even(coded_count - count, 0)), count

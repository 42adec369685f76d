"""From a decoded frame to the square that is shipped: crop, scale and rotate. The child imports this."""

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame

from rayjepa.data.clip import ClipSpec, Window

Box = tuple[int, int, int, int]
"""Left, top, width and height of a crop in pixels."""

I420 = "flags=bicubic:out_range=tv:out_color_matrix=bt601"
"""What the device expects, whatever the source: BT.601, limited range. Costs only where the source says otherwise."""
RGB = "flags=bicubic+accurate_rnd+full_chroma_int"
"""The slow path of swscale: its fast one is 9 dB further from an antialiased resize of an exact RGB frame."""
TRIES = 10
"""Draws of a crop before the centred one, as in torchvision's RandomResizedCrop."""


def crop_box(window: Window, width: int, height: int) -> Box:
    """The crop (left, top, width, height) of a displayed frame of this size; a function of the window alone.

    Area is drawn uniformly in `window.scale`, aspect log-uniformly in `window.aspect`; after ten draws that do not fit,
    the largest centred box whose aspect is in range. Seed -1: the largest centred square.
    Units:   pixels; all four numbers are even, as 4:2:0 chroma needs, and the box is at least 2 x 2 if the frame is.
    Source:  "Inception" crops (arXiv:1409.4842, section 6), with the fallback of torchvision's RandomResizedCrop.
    """
    if window.seed == -1:
        side = min(width, height)
        return _centred(side, side, width, height)
    draw = random.Random(window.seed).random  # the one method whose sequence Python guarantees across versions
    low, high = window.aspect
    for _ in range(TRIES):
        area = width * height * (window.scale[0] + draw() * (window.scale[1] - window.scale[0]))
        aspect = math.exp(math.log(low) + draw() * (math.log(high) - math.log(low)))
        across, down = draw(), draw()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            w, h = _even(w), _even(h)
            return _even(int(across * (width - w + 1)), 0), _even(int(down * (height - h + 1)), 0), w, h
    aspect = min(max(width / height, low), high)
    return _centred(min(width, round(height * aspect)), min(height, round(width / aspect)), width, height)


def _even(value: int, least: int = 2) -> int:
    return max(value & ~1, least)


def _centred(w: int, h: int, width: int, height: int) -> Box:
    w, h = _even(w), _even(h)
    return _even((width - w) // 2, 0), _even((height - h) // 2, 0), w, h


def coded_box(box: Box, width: int, height: int, turns: int) -> Box:
    """Where a box of the displayed frame lies in the coded one (width x height); even coordinates again.

    Units:   `turns` is the number of quarter turns counterclockwise from coded to displayed.
    """
    x, y, w, h = box
    match turns:
        case 1:
            x, y, w, h = width - y - h, x, h, w
        case 2:
            x, y = width - x - w, height - y - h
        case 3:
            x, y, w, h = y, height - x - w, h, w
        case _:
            assert turns == 0, f"{turns} quarter turns"
    return _even(x, 0), _even(y, 0), w, h


def quarter_turns(rotation: int) -> int:
    """Quarter turns counterclockwise from coded to displayed, 0 to 3, of a rotation in degrees."""
    return round(rotation / 90) % 4


class Shipper:
    """Writes frames of one clip into its rows: one filter graph for all, made anew only if the frames change shape.

    Shapes:  pictures (frames, bytes of one square), I420 or RGB as the spec says.
    """

    def __init__(self, spec: ClipSpec, pictures: Any) -> None:
        self.spec = spec
        self.pictures = pictures
        self._shape: tuple[object, ...] = ()
        self._turns = 0

    def ship(self, frame: VideoFrame, rows: list[int]) -> None:
        """Crop, scale and rotate one frame into each of these rows."""
        shape = (frame.width, frame.height, frame.format.name, frame.rotation)
        if shape != self._shape:
            self._build(frame)
            self._shape = shape
        self._source.push(frame)
        self._copy(self._sink.pull(), self.pictures[rows[0]])
        for row in rows[1:]:
            self.repeat(row, rows[0])

    def repeat(self, row: int, source: int) -> None:
        """Fill row `row` with what row `source` shows."""
        self.pictures[row] = self.pictures[source]

    def _build(self, frame: VideoFrame) -> None:
        self._turns = quarter_turns(frame.rotation)
        width, height = frame.width, frame.height
        if min(width, height) < 2:
            raise ValueError(f"a frame of {width} x {height} pixels is too small to crop")
        displayed = (height, width) if self._turns % 2 else (width, height)
        x, y, w, h = coded_box(crop_box(self.spec.window, *displayed), width, height, self._turns)
        side = self.spec.window.size_px
        target, how = ("rgb24", RGB) if self.spec.pixels == "rgb" else ("yuv420p", I420)
        graph = Graph()
        graph.threads = 1  # the default is a thread pool of all CPUs per graph
        nodes = [
            graph.add(
                "buffer",
                video_size=f"{width}x{height}",
                pix_fmt=frame.format.name,
                time_base="1/1",
                pixel_aspect="1/1",
                colorspace=str(int(frame.colorspace)),
                range=str(int(frame.color_range)),
            ),
            graph.add("crop", f"{w}:{h}:{x}:{y}"),
            graph.add("scale", f"{side}:{side}:{how}"),
            graph.add("format", target),
            graph.add("buffersink"),
        ]
        for node, following in pairwise(nodes):
            node.link_to(following)
        graph.configure()
        self._graph, self._source, self._sink = graph, nodes[0], nodes[-1]

    def _copy(self, frame: Any, row: Any) -> None:
        """Planes into flat bytes, each without its padding and turned to how it is displayed."""
        offset = 0
        channels = (3,) if self.spec.pixels == "rgb" else ()
        for plane in frame.planes:
            side = plane.height
            padded = np.frombuffer(plane, np.uint8, plane.line_size * side).reshape(side, plane.line_size)
            width = side * 3 if channels else side
            image = padded[:, :width].reshape(side, side, *channels)
            row[offset : offset + side * width].reshape(side, side, *channels)[...] = np.rot90(image, self._turns)
            offset += side * width

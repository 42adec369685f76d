"""Where a crop lies: arithmetic alone, for the decoder and for views that are drawn on the device."""

import math
import random

from rayjepa.data.clip import Window

Box = tuple[int, int, int, int]
"""Left, top, width and height of a crop in pixels."""
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
            w, h = even(w), even(h)
            return even(int(across * (width - w + 1)), 0), even(int(down * (height - h + 1)), 0), w, h
    aspect = min(max(width / height, low), high)
    return _centred(min(width, round(height * aspect)), min(height, round(width / aspect)), width, height)


def even(value: int, least: int = 2) -> int:
    """`value` or the even number below it, at least `least`."""
    return max(value & ~1, least)


def _centred(w: int, h: int, width: int, height: int) -> Box:
    w, h = even(w), even(h)
    return even((width - w) // 2, 0), even((height - h) // 2, 0), w, h


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
    return even(x, 0), even(y, 0), w, h

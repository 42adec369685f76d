"""Blocks of tokens: how large a step makes them, and which cells they cover where a sample puts them.

A draw gives sets of cells, the context first, then what is predicted. Blocks through all time are drawn in one frame,
whose cells stand for whole columns of tokens (8 to 32 times less work).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from rayjepa.config import BlockConfig, ImageBlocksConfig
from rayjepa.masks.draws import CONTEXT, POSITION, Keys, uniform

Grid = tuple[int, int, int]
Frame = tuple[int, int]
Sets = Bool[np.ndarray, "S sets cells"]

TRIES = 20
"""Places of the context block that I-JEPA tries before it lets one target block more overlap with it."""


class Multiblock(NamedTuple):
    """Blocks of one size; all they cover is predicted from all the rest."""

    mask_type: int
    blocks: int
    size: Grid
    grid: Grid

    @property
    def depth(self) -> int:
        """Time slots that one cell stands for."""
        return self.grid[0] if self.size[0] == self.grid[0] else 1

    def draw(self, keys: Keys, attempt: int) -> Sets:
        """Context and target of each sample; the context may be empty."""
        draws = uniform(keys, POSITION, self.mask_type, attempt, count=3 * self.blocks)
        hidden = _covered(draws.reshape(len(keys), self.blocks, 3), self.size, self.grid)
        return np.stack([~hidden, hidden], axis=1)


class ImageBlocks(NamedTuple):
    """Target blocks of one size, each predicted from one context block without all of them, through all time.

    Source:  I-JEPA (arXiv:2301.08243), appendix A.1, and its implementation: where TRIES places of the context block
             leave fewer than min_context cells, the last target block stays in the context, and so on.
    """

    cfg: ImageBlocksConfig
    target: Frame
    context: Frame
    grid: Grid

    @property
    def depth(self) -> int:
        """Time slots that one cell stands for."""
        return self.grid[0]

    def draw(self, keys: Keys, attempt: int) -> Sets:
        """Context and targets of each sample; the context has min_context cells at least."""
        count, frame = self.cfg.targets, self.grid[1:]
        draws = uniform(keys, POSITION, attempt, count=2 * count).reshape(len(keys), count, 2)
        targets = self._boxes(draws, self.target).reshape(len(keys), count, -1)
        context = np.zeros((len(keys), frame[0] * frame[1]), dtype=bool)
        pending = np.arange(len(keys))
        for trial in range(TRIES * count + 1):
            draws = uniform(keys[pending], CONTEXT, attempt, trial, count=2)[:, None]
            block = self._boxes(draws, self.context).reshape(len(pending), -1)
            context[pending] = block & ~targets[pending, : count - trial // TRIES].any(axis=1)
            pending = pending[context[pending].sum(axis=1) < self.cfg.min_context]
            if not pending.size:
                break
        return np.concatenate([context[:, None], targets], axis=1)

    def _boxes(self, draws: Float64[np.ndarray, "S blocks 2"], size: Frame) -> Bool[np.ndarray, "S blocks H W"]:
        room = blind(self.grid[1:]) if self.cfg.blind_edge else self.grid[1:]
        rows, columns = (_span(draws[..., axis], size[axis], room[axis], self.grid[1 + axis]) for axis in range(2))
        return rows[..., :, None] & columns[..., None, :]


def block_size(cfg: BlockConfig, grid: Grid, draws: tuple[float, float, float]) -> Grid:
    """Time slots, rows and columns of a block from uniform draws of duration, area and aspect; at least one each.

    Source:  V-JEPA's implementation: shares are cut down to whole tokens, sides rounded half to even.
    """
    slots, height, width = grid
    duration, area = (
        int(slots * _between(cfg.temporal, draws[0])),
        int(height * width * _between(cfg.spatial, draws[1])),
    )
    tall, wide = _sides(area, _between(cfg.aspect, draws[2]))
    return max(1, duration), min(height, tall), min(width, wide)


def image_block_size(
    scale: tuple[float, float], aspect: tuple[float, float], room: Frame, frame: Frame, draw: float
) -> Frame:
    """Rows and columns of a block, at most `room`: one draw decides on area and aspect.

    Source:  I-JEPA's implementation; small blocks are wide there and large ones tall.
    """
    tall, wide = _sides(int(frame[0] * frame[1] * _between(scale, draw)), _between(aspect, draw))
    return min(room[0], tall), min(room[1], wide)


def blind(frame: Frame) -> Frame:
    """The frame without its last row and column."""
    return frame[0] - 1, frame[1] - 1


def _sides(area: int, aspect: float) -> Frame:
    return max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))


def _between(span: tuple[float, float], draw: float) -> float:
    return span[0] + (span[1] - span[0]) * draw


def _covered(draws: Float64[np.ndarray, "S blocks 3"], size: Grid, grid: Grid) -> Bool[np.ndarray, "S cells"]:
    """Cells that blocks of `size` cover, placed by uniform draws of time, row and column."""
    times, rows, columns = (_span(draws[..., axis], size[axis], grid[axis], grid[axis]) for axis in range(3))
    frames = rows[..., :, None] & columns[..., None, :]
    if size[0] == grid[0]:
        return frames.any(axis=1).reshape(len(draws), -1)
    frames = frames.reshape(*frames.shape[:2], -1).astype(np.float32)
    hits = times.transpose(0, 2, 1).astype(np.float32) @ frames  # blocks that cover each token
    return hits.reshape(len(draws), -1) > 0


def _span(
    draws: Float64[np.ndarray, "S blocks"], size: int, room: int, length: int
) -> Bool[np.ndarray, "S blocks {length}"]:
    """Which of `length` places are in a run of `size`, which starts anywhere that keeps it within `room`."""
    start: Int64[np.ndarray, "S blocks"] = np.floor(draws * (room - size + 1)).astype(np.int64)
    places = np.arange(length)
    return (places >= start[..., None]) & (places < start[..., None] + size)

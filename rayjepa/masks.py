"""Which tokens of each clip are seen and which are predicted: a function of the run, the step and the sample.

Nothing here depends on the world size, the micro-batch or who else is in it. Masks are drawn on the training worker, on
the CPU, as token ids in raster order t*(H*W) + h*W + w.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from rayjepa.config import BlockConfig, MaskConfig, RunConfig
from rayjepa.data.clip import ClipSpec

Grid = tuple[int, int, int]
Hidden = Bool[np.ndarray, "S N"]

REDRAWS = 1000
"""Draws of a clip's positions after which a search stops; about 1.1 are expected in a group of 24."""
SIZES = 20
"""Block sizes that a step tries before it says that no context can be left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Token ids of one mask type, rising along each row; tokens in neither are not used."""

    context: Int64[Tensor, "B C"]
    target: Int64[Tensor, "B M"]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What one step fixes for one mask type of kind multiblock: the blocks' size, and what samples must leave."""

    number: int
    size: Grid
    context: int
    target: int
    group: Hidden
    """The phantom group whose minima the two counts are: every row of it satisfies both."""


def names(cfg: MaskConfig) -> tuple[str, ...]:
    """Name of each mask type, which is one prediction task per clip."""
    match cfg.kind:
        case "multiblock":
            return tuple(f"mask{i}" for i in range(len(cfg.multiblock)))
        case "tube" | "random":
            return (cfg.kind,)
        case _ as unreachable:
            assert_never(unreachable)


def splits_for(run: RunConfig, *, step: int, specs: Sequence[ClipSpec]) -> tuple[Split, ...]:
    """The masks of `specs` at `step`, one split per mask type; the same shapes for all samples of the step.

    Raises:  ValueError if `run.masks` leaves no context, or nothing to predict, on `run.grid`.
    """
    cfg = run.masks
    match cfg.kind:
        case "multiblock":
            return tuple(
                _multiblock(run, mask_type, step=step, specs=specs) for mask_type in range(len(cfg.multiblock))
            )
        case "tube":
            steps, height, width = run.grid
            return (_shuffled(cfg, specs, cells=height * width, depth=steps),)
        case "random":
            return (_shuffled(cfg, specs, cells=math.prod(run.grid), depth=1),)
        case _ as unreachable:
            assert_never(unreachable)


def _multiblock(run: RunConfig, mask_type: int, *, step: int, specs: Sequence[ClipSpec]) -> Split:
    """Hide blocks at each sample's own places, and cut context and target to the step's counts.

    Source:  V-JEPA (arXiv:2404.08471), section 3.2. There the counts are minima over the clips of one GPU, so that the
             task gets easier with a smaller batch; here they are minima over a phantom group of masks.group_size
             clips, drawn from (seed, step) alone. As there, lists are cut to their first entries, which drops the
             end of the clip.
    """
    plan = _plan(run, mask_type, step=step)
    hidden = _positions(plan, run.grid, [_generator(_key(spec), mask_type) for spec in specs])
    return Split(context=_first(~hidden, plan.context), target=_first(hidden, plan.target))


def _plan(run: RunConfig, mask_type: int, *, step: int) -> _Blocks:
    """Block size and phantom group of `step`, equal on all ranks."""
    cfg, generator = run.masks.multiblock[mask_type], _generator(run.seed, step, mask_type)
    for _ in range(SIZES):
        size = _block_size(cfg, run.grid, generator)
        group = _group(run.masks.group_size, cfg.blocks, size, run.grid, generator)
        if group is not None:
            target = group.sum(axis=1)
            most = int(target.max())
            return _Blocks(cfg.blocks, size, context=group.shape[1] - most, target=int(target.min()), group=group)
    raise ValueError(
        f"masks.multiblock[{mask_type}] ({cfg.blocks} blocks of {list(cfg.spatial)} of the frame) leaves no context on "
        f"the token grid {run.grid}; use fewer or smaller blocks, or a larger data.size_px"
    )


def _group(members: int, blocks: int, size: Grid, grid: Grid, generator: np.random.Generator) -> Hidden | None:
    """Hidden tokens of `members` phantom clips, none of them all hidden; none if blocks of `size` do not allow it.

    A member without context is drawn again by itself: members are independent, so that the group is distributed as
    if the whole of it were drawn until every member has a context.
    """
    hidden = np.ones((members, math.prod(grid)), dtype=bool)
    empty = np.arange(members)
    for _ in range(REDRAWS if size != grid else 0):
        hidden[empty] = _paint(generator.random((empty.size, blocks, 3)), size, grid)
        empty = np.flatnonzero(hidden.all(axis=1))
        if not empty.size:
            return hidden
    return None


def _block_size(cfg: BlockConfig, grid: Grid, generator: np.random.Generator) -> Grid:
    """Time slots, rows and columns of a block, at least one each."""
    steps, height, width = grid
    slots = int(steps * _uniform(cfg.temporal, generator))
    area = int(height * width * _uniform(cfg.spatial, generator))
    aspect = _uniform(cfg.aspect, generator)
    tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return max(1, slots), min(height, max(1, tall)), min(width, max(1, wide))


def _positions(plan: _Blocks, grid: Grid, generators: Sequence[np.random.Generator]) -> Hidden:
    """Hidden tokens of each sample, redrawn until context and target reach the step's counts.

    A sample that still has none after REDRAWS takes a member of the phantom group, drawn from its own seed. Every
    member reaches the counts, so that this cannot fail. It is met only with tiny groups, where a single count may be
    the one allowed (group 1, grid 8x16x16: 51 draws on average, 1.06 at group 24).
    """
    hidden = np.empty((len(generators), plan.group.shape[1]), dtype=bool)
    pending = np.arange(len(generators))
    for _ in range(REDRAWS):
        draws = np.stack([generators[i].random((plan.number, 3)) for i in pending.tolist()])
        hidden[pending] = _paint(draws, plan.size, grid)
        target = hidden[pending].sum(axis=1)
        pending = pending[(target < plan.target) | (hidden.shape[1] - target < plan.context)]
        if not pending.size:
            return hidden
    for i in pending.tolist():
        hidden[i] = plan.group[generators[i].integers(len(plan.group))]
    return hidden


def _paint(draws: Float64[np.ndarray, "S blocks 3"], size: Grid, grid: Grid) -> Hidden:
    """Tokens covered by blocks of `size` placed by uniform draws in [0, 1) of (time, row, column)."""
    covered: list[Bool[np.ndarray, "S blocks n"]] = []
    for axis in range(3):
        start = np.floor(draws[..., axis] * (grid[axis] - size[axis] + 1))[..., None]
        place = np.arange(grid[axis])
        covered.append((start <= place) & (place < start + size[axis]))
    times, rows, columns = covered
    if size[0] == grid[0]:  # whole-clip tubes: paint one frame (8 times less work at 8 slots)
        frame = (rows[:, :, :, None] & columns[:, :, None, :]).any(axis=1).reshape(len(draws), -1)
        return np.tile(frame, (1, grid[0]))
    boxes = times[:, :, :, None, None] & rows[:, :, None, :, None] & columns[:, :, None, None, :]
    return boxes.any(axis=1).reshape(len(draws), -1)


def _shuffled(cfg: MaskConfig, specs: Sequence[ClipSpec], *, cells: int, depth: int) -> Split:
    """Show and predict randomly chosen cells, each through `depth` time slots; the counts are exact.

    Source:  random tubes of V-JEPA's implementation; depth 1 is masking of single tokens (MAE, arXiv:2111.06377).
    """
    seen = round((1 - cfg.ratio) * cells)
    hidden = cells - seen
    predicted = hidden if cfg.predict is None else min(hidden, round(cfg.predict * cells))
    if min(seen, predicted) < 1:
        raise ValueError(
            f"masks.ratio={cfg.ratio} and masks.predict={cfg.predict} show {seen} and predict {predicted} of {cells} "
            f"cells; both need at least one. Raise data.size_px, or move the shares away from 0 and 1"
        )
    order = np.stack([_generator(_key(spec), 0).permutation(cells) for spec in specs])
    context = np.zeros(order.shape, dtype=bool)
    target = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(context, order[:, :seen], True, axis=1)
    np.put_along_axis(target, order[:, seen : seen + predicted], True, axis=1)
    return Split(
        context=_first(np.tile(context, (1, depth)), seen * depth),
        target=_first(np.tile(target, (1, depth)), predicted * depth),
    )


def _first(chosen: Hidden, count: int) -> Int64[Tensor, "S {count}"]:
    """Ids of the first `count` tokens chosen in each row."""
    return torch.as_tensor(np.stack([np.flatnonzero(row)[:count] for row in chosen]), dtype=torch.int64)


def _key(spec: ClipSpec) -> int:
    return spec.mask_seed % 2**64  # a seed sequence takes no negative numbers


def _generator(seed: int, *place: int) -> np.random.Generator:
    """Random numbers that are a function of `seed` and `place` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=place)))


def _uniform(span: tuple[float, float], generator: np.random.Generator) -> float:
    return span[0] + (span[1] - span[0]) * generator.random()

"""What a step fixes for all its clips: block sizes, and the counts that a phantom group of clips can spare.

In V-JEPA and I-JEPA the counts are minima over the clips of one GPU, so that the task gets easier with a smaller batch.
Here they are minima over masks.group_size clips that are drawn from (seed, step) alone.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from rayjepa.config import MaskConfig, RunConfig
from rayjepa.masks.blocks import Grid, ImageBlocks, Multiblock, Sets, blind, block_size, image_block_size
from rayjepa.masks.draws import MEMBER, SIZE, Keys, member_keys, step_key, uniform, words

Law = Multiblock | ImageBlocks
Pending = Int64[np.ndarray, " pending"]

REDRAWS = 1000
"""Draws of a clip's positions after which a search stops; about 1.1 are expected in a group of 24."""
SIZES = 20
"""Block sizes that a step tries before it says that no context can be left."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How samples draw, and what they must leave."""

    law: Law
    least: Int64[np.ndarray, " sets"]
    """Cells that each set of every sample has at least."""
    group: Sets
    """The phantom group: every member of it has as many."""


def multiblock_plan(run: RunConfig, mask_type: int, *, step: int) -> Plan:
    """Block size and counts of one mask type of kind multiblock.

    Raises:  ValueError if masks.multiblock leaves no context on `run.grid`.
    Source:  V-JEPA (arXiv:2404.08471), section 3.2, and its implementation, but for the group.
    """
    return _multiblock(run.masks, run.grid, run.seed, mask_type, step)


def image_blocks_plan(run: RunConfig, *, step: int) -> Plan:
    """Block sizes and counts of kind ijepa.

    Raises:  ValueError if `run.grid` is too small for masks.ijepa.
    Source:  I-JEPA (arXiv:2301.08243), appendix A.1, and its implementation, but for the group.
    """
    return _image_blocks(run.masks, run.grid, run.seed, step)


def draw(plan: Plan, keys: Keys) -> Sets:
    """The sets of each sample, redrawn until they reach the plan's counts.

    A sample that still does not after REDRAWS takes a member of the phantom group, chosen by its own key: this cannot
    fail. It is met only with tiny groups, where a single count may be the one allowed.
    """
    sets, pending = _settle(plan.law, keys, plan.least)
    if pending.size:
        choice = words(keys[pending], MEMBER, count=1)[:, 0] % np.uint64(len(plan.group))
        sets[pending] = plan.group[choice]
    return sets


@functools.lru_cache(maxsize=16)  # micro-batches of one step share it
def _multiblock(masks: MaskConfig, grid: Grid, seed: int, mask_type: int, step: int) -> Plan:
    cfg = masks.multiblock[mask_type]
    for attempt in range(SIZES):
        draws = uniform(step_key(seed), SIZE, step, mask_type, attempt, count=3)[0]
        size = block_size(cfg, grid, (float(draws[0]), float(draws[1]), float(draws[2])))
        law = Multiblock(mask_type=mask_type, blocks=cfg.blocks, size=size, grid=grid)
        plan = _plan(law, masks, seed, step) if size != grid else None
        if plan is not None:
            return plan
    raise ValueError(
        f"masks.multiblock[{mask_type}] ({cfg.blocks} blocks of {list(cfg.spatial)} of the frame) leaves no context on "
        f"the token grid {grid}; use fewer or smaller blocks, or a larger data.size_px"
    )


@functools.lru_cache(maxsize=16)
def _image_blocks(masks: MaskConfig, grid: Grid, seed: int, step: int) -> Plan:
    cfg, frame = masks.ijepa, grid[1:]
    room = blind(frame) if cfg.blind_edge else frame
    if min(room) < 1:
        raise ValueError(f"masks.ijepa.blind_edge leaves nothing of the token grid {grid}; use a larger data.size_px")
    draws = uniform(step_key(seed), SIZE, step, count=2)[0]
    target = image_block_size(cfg.target_scale, cfg.target_aspect, room, frame, float(draws[0]))
    context = image_block_size(cfg.context_scale, (1.0, 1.0), room, frame, float(draws[1]))
    if context[0] * context[1] < cfg.min_context:
        raise ValueError(
            f"masks.ijepa: a context block of {context[0]} x {context[1]} tokens has fewer than "
            f"masks.ijepa.min_context={cfg.min_context} on the token grid {grid}; use a smaller min_context, a larger "
            "masks.ijepa.context_scale or a larger data.size_px"
        )
    plan = _plan(ImageBlocks(cfg=cfg, target=target, context=context, grid=grid), masks, seed, step)
    assert plan is not None, "a context block that is large enough is found at the latest where all targets may overlap"
    return plan


def _plan(law: Law, masks: MaskConfig, seed: int, step: int) -> Plan | None:
    """The plan of blocks that leave every clip of the phantom group something; none if they cannot.

    A member without context is drawn again by itself: members are independent, so that the group is distributed as
    if the whole of it were drawn until every member has a context.
    """
    is_cut = masks.truncate != "none"
    members = masks.group_size if is_cut or masks.same_positions else 1
    group, empty = _settle(law, member_keys(seed, step=step, members=members), 1)
    if empty.size:
        return None
    counts = group.sum(axis=2)
    return Plan(law=law, least=counts.min(axis=0) if is_cut else np.ones_like(counts[0]), group=group)


def _settle(law: Law, keys: Keys, least: Int64[np.ndarray, " sets"] | int) -> tuple[Sets, Pending]:
    """Sets of each key from its first draw in which all have `least` cells, and the keys that had no such draw."""
    sets = law.draw(keys, 0)
    pending = np.flatnonzero((sets.sum(axis=2) < least).any(axis=1))
    for attempt in range(1, REDRAWS):
        if not pending.size:
            break
        sets[pending] = law.draw(keys[pending], attempt)
        pending = pending[(sets[pending].sum(axis=2) < least).any(axis=1)]
    return sets, pending

"""The kinds of masks, from a run's knobs to the splits of a micro-batch."""

import math
from collections.abc import Sequence
from typing import assert_never

from torch import Tensor

from rayjepa.config import MaskConfig, RunConfig
from rayjepa.data.clip import ClipSpec
from rayjepa.masks.cells import causal, shuffled
from rayjepa.masks.draws import Keys, keys_of
from rayjepa.masks.group import Plan, draw, image_blocks_plan, multiblock_plan
from rayjepa.masks.split import Split, first, padded, some


def names(cfg: MaskConfig) -> tuple[str, ...]:
    """Name of each split, which is one prediction task per clip."""
    match cfg.kind:
        case "multiblock":
            return tuple(f"mask{i}" for i in range(len(cfg.multiblock)))
        case "ijepa":
            return tuple(f"target{i}" for i in range(cfg.ijepa.targets))
        case "tube" | "random" | "causal":
            return (cfg.kind,)
        case _ as unreachable:
            assert_never(unreachable)


def is_padded(cfg: MaskConfig) -> bool:
    """Whether rows of a split may differ in length, and be padded to the longest."""
    return cfg.truncate == "none" and cfg.kind in ("multiblock", "ijepa")


def splits_for(run: RunConfig, *, step: int, specs: Sequence[ClipSpec]) -> tuple[Split, ...]:
    """The masks of `specs` at `step`, one split for each of `names`.

    All samples of the step have the same counts, but where masks.truncate is none: there rows are padded to the longest
    of `specs`. Splits of kind ijepa have one context, the same tensor.
    Raises:  ValueError if `run.masks` leaves no context, or nothing to predict, on `run.grid`.
    """
    cfg, grid = run.masks, run.grid
    keys = keys_of(run, step=step, specs=specs)
    match cfg.kind:
        case "multiblock":
            plans = [multiblock_plan(run, i, step=step) for i in range(len(cfg.multiblock))]
            return tuple(split for i, plan in enumerate(plans) for split in _blocks(cfg, plan, keys, mask_type=i))
        case "ijepa":
            return _blocks(cfg, image_blocks_plan(run, step=step), keys, mask_type=0)
        case "tube":
            return (shuffled(cfg, keys, cells=grid[1] * grid[2], depth=grid[0]),)
        case "random":
            return (shuffled(cfg, keys, cells=math.prod(grid), depth=1),)
        case "causal":
            return (causal(cfg, grid, clips=len(specs)),)
        case _ as unreachable:
            assert_never(unreachable)


def _blocks(cfg: MaskConfig, plan: Plan, keys: Keys, *, mask_type: int) -> tuple[Split, ...]:
    """One split for each set that is predicted, cut as masks.truncate says.

    Source:  "raster" as V-JEPA and I-JEPA, which cut lists to their first entries: of a clip, that drops the end.
    """
    sets, depth = draw(plan, keys), plan.law.depth
    counts = [int(least) * depth for least in plan.least]

    def cut(i: int) -> tuple[Tensor, Tensor | None]:
        match cfg.truncate:
            case "raster":
                return first(sets[:, i], depth=depth, count=counts[i]), None
            case "random":
                return some(sets[:, i], depth=depth, count=counts[i], keys=keys, place=(mask_type, i)), None
            case "none":
                return padded(sets[:, i], depth=depth)
            case _ as unreachable:
                assert_never(unreachable)

    (context, context_valid), *targets = (cut(i) for i in range(sets.shape[1]))
    return tuple(
        Split(context=context, context_valid=context_valid, target=target, target_valid=target_valid)
        for target, target_valid in targets
    )

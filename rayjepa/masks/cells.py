"""Masks without blocks: cells in random order, and the future. Their counts are exact and the same for all samples."""

import numpy as np
import torch

from rayjepa.config import MaskConfig
from rayjepa.masks.blocks import Grid
from rayjepa.masks.draws import ORDER, Keys, orders
from rayjepa.masks.split import Split, first, lowest


def shuffled(cfg: MaskConfig, keys: Keys, *, cells: int, depth: int) -> Split:
    """Show and predict randomly chosen cells, each through `depth` time slots.

    Raises:  ValueError if nothing is shown or predicted.
    Source:  random tubes of V-JEPA's implementation; depth 1 is masking of single tokens (MAE, arXiv:2111.06377).
    """
    seen = round((1 - cfg.ratio) * cells)
    predicted = _predicted(cfg, seen, cells, "cells", remedy="raise data.size_px")
    context, target = np.zeros((2, len(keys), cells), dtype=bool)
    for i, words in enumerate(orders(keys, ORDER, counts=[cells] * len(keys))):
        context[i] = lowest(words, seen)
        target[i] = lowest(words, seen + predicted) & ~context[i]
    return Split(
        context=first(context, depth=depth, count=seen * depth),
        target=first(target, depth=depth, count=predicted * depth),
    )


def causal(cfg: MaskConfig, grid: Grid, *, clips: int) -> Split:
    """Show the first time slots of each clip and predict those that follow; all clips have the same mask.

    Raises:  ValueError if nothing is left to predict.
    """
    slots, height, width = grid
    seen = max(1, round((1 - cfg.ratio) * slots))
    predicted = _predicted(cfg, seen, slots, "time slots", remedy="raise data.frames")
    ends = (seen * height * width, (seen + predicted) * height * width)
    return Split(context=torch.arange(ends[0]).repeat(clips, 1), target=torch.arange(*ends).repeat(clips, 1))


def _predicted(cfg: MaskConfig, seen: int, whole: int, what: str, *, remedy: str) -> int:
    hidden = whole - seen
    predicted = hidden if cfg.predict is None else min(hidden, round(cfg.predict * whole))
    if min(seen, predicted) < 1:
        raise ValueError(
            f"masks.ratio={cfg.ratio} and masks.predict={cfg.predict} show {seen} and predict {predicted} of {whole} "
            f"{what}; both need at least one. Move the shares away from 0 and 1, or {remedy}"
        )
    return predicted

"""What the masks of the published recipes come to, against figures measured with the published implementations.

Means are over fixed steps, so that no test depends on luck; their standard errors are at most 0.5 % of a clip's tokens.
"""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from mask_clips import IMAGES, LARGE, specs, with_masks

from rayjepa.config import BlockConfig, ImageBlocksConfig, RunConfig, resolve
from rayjepa.masks import splits_for
from rayjepa.masks.blocks import block_size, image_block_size
from rayjepa.masks.group import Plan, image_blocks_plan, multiblock_plan

STEPS = 120
# Frames, pixels, clips per group; then kept and predicted tokens of the short- and of the long-range mask, as means of
# 300 draws with V-JEPA's collator. Its own figure for what is predicted of 64 frames of 256 px, 3894, is not what its
# algorithm gives: a plain loop over sets of cells, written apart from this package, gives 4066 in 600 draws.
SHARES = [
    (16, 256, 1, (794, 1254, 399, 1649)),
    (16, 256, 24, (501, 966, 133, 1441)),
    (16, 224, 24, (369, 746, 104, 1101)),
    (64, 256, 12, (2198, 4066, 613, 5834)),
    (64, 384, 6, (5478, 9649, 2086, 13488)),
]


def counts(plan: Plan) -> list[int]:
    return (plan.least * plan.law.depth).tolist()


def uncut(plan: Plan) -> list[float]:
    """What a group of one clip keeps: the mean over the members of a larger one."""
    return (plan.group.sum(axis=2).mean(axis=0) * plan.law.depth).tolist()


@pytest.mark.parametrize(("frames", "size", "group", "expected"), SHARES)
def test_kept_and_predicted_shares_are_those_of_the_published_masks(
    frames: int, size: int, group: int, expected: tuple[int, int, int, int]
) -> None:
    run = resolve(None, {"cluster.workers": 0, "data.frames": frames, "data.size_px": size})
    read = uncut if group == 1 else counts
    run = run if group == 1 else with_masks(run, group_size=group)
    drawn = np.array([[n for i in range(2) for n in read(multiblock_plan(run, i, step=step))] for step in range(STEPS)])
    tokens = math.prod(run.grid)
    assert (drawn.std(axis=0) / math.sqrt(STEPS) < 0.005 * tokens).all()
    np.testing.assert_allclose(drawn.mean(axis=0) / tokens, np.array(expected) / tokens, rtol=0, atol=0.01)


@pytest.mark.parametrize(("group", "context"), [(1, 112), (16, 81), (128, 69)])
def test_context_and_targets_of_images_have_the_shares_of_the_published_masks(group: int, context: int) -> None:
    """Of 256 tokens, I-JEPA's collator keeps so many at so many images a GPU, and puts 44 into each target."""
    run = with_masks(IMAGES, group_size=max(group, 16), blind_edge=True)
    read = uncut if group == 1 else counts
    steps = 3 * STEPS if group == 1 else STEPS
    drawn = np.array([read(image_blocks_plan(run, step=step)) for step in range(steps)])
    assert (drawn.std(axis=0) / math.sqrt(steps) < 0.005 * 256).all()
    assert drawn[:, 0].mean() / 256 == pytest.approx(context / 256, abs=0.01)
    assert drawn[:, 1:].mean() / 256 == pytest.approx(44 / 256, abs=0.01)
    assert (drawn[:, 1:] == drawn[:, 1:2]).all()


@pytest.mark.parametrize("kind", ["multiblock", "ijepa"])
def test_counts_of_a_steps_splits_are_the_plans(kind: str) -> None:
    run = with_masks(LARGE, kind=kind)
    plans = [multiblock_plan(run, i, step=5) for i in range(2)] if kind == "multiblock" else None
    splits = splits_for(run, step=5, specs=specs(1, 2))
    found = [(split.context.shape[1], split.target.shape[1]) for split in splits]
    if plans is None:
        context, *targets = counts(image_blocks_plan(run, step=5))
        assert found == [(context, target) for target in targets]
    else:
        assert found == [tuple(counts(plan)) for plan in plans]


def slots(run: RunConfig, steps: int) -> np.ndarray:
    """Share of the context tokens in each time slot, of each mask type: the mean over steps."""
    found = np.zeros((2, 8))
    for step in range(steps):
        for i, split in enumerate(splits_for(run, step=step, specs=specs(2 * step, 2 * step + 1))):
            found[i] += np.bincount((split.context // 256).flatten().numpy(), minlength=8) / split.context.numel()
    return found / steps


def test_cutting_in_raster_order_drops_the_end_of_the_clip_and_a_random_choice_does_not() -> None:
    """Against 600 groups of a plain loop over frames, written apart from this package (s.e. at most 0.007)."""
    expected = [
        [0.201, 0.201, 0.198, 0.179, 0.126, 0.062, 0.024, 0.009],
        [0.446, 0.295, 0.131, 0.064, 0.027, 0.016, 0.011, 0.010],
    ]
    np.testing.assert_allclose(slots(LARGE, 150), expected, rtol=0, atol=0.02)
    np.testing.assert_allclose(slots(with_masks(LARGE, truncate="random"), 20), 1 / 8, rtol=0, atol=0.02)


def test_the_most_frequent_block_sizes_are_those_of_the_published_masks() -> None:
    published = [
        {(6, 6), (7, 5), (7, 6), (6, 7)},
        {(15, 12), (16, 11), (14, 13), (13, 14), (12, 15)},
    ]
    for cfg, expected in zip(LARGE.masks.multiblock, published, strict=True):
        drawn = Counter(block_size(cfg, (8, 16, 16), (0.0, 0.0, (i + 0.5) / 200))[1:] for i in range(200))
        assert {size for size, _ in drawn.most_common(len(expected))} == expected


@pytest.mark.parametrize(
    ("cfg", "draws", "size"),
    [
        (BlockConfig(), (0.5, 0.5, 0.0), (8, 5, 7)),  # 38 tokens, aspect 0.75: 5.34 by 7.12
        (BlockConfig(), (0.5, 0.5, 0.999), (8, 8, 5)),  # 7.55 by 5.03
        (BlockConfig(spatial=(0.7, 0.7)), (0.0, 0.0, 0.0), (8, 12, 15)),  # 179 tokens: 11.6 by 15.4
        (BlockConfig(spatial=(0.7, 0.7)), (0.0, 0.0, 0.999), (8, 16, 11)),  # 16.4, but the grid has 16
        (BlockConfig(spatial=(0.1, 0.1), aspect=(0.25, 0.25)), (0.0, 0.0, 0.0), (8, 2, 10)),  # 25 tokens: 2.5 is 2
        (BlockConfig(spatial=(0.195, 0.195), aspect=(0.25, 0.25)), (0.0, 0.0, 0.0), (8, 4, 14)),  # 49 tokens: 3.5 is 4
        (BlockConfig(temporal=(0.1, 0.6), spatial=(0.1, 0.3), aspect=(1.0, 1.0)), (0.7, 0.25, 0.9), (3, 6, 6)),
        (BlockConfig(temporal=(0.1, 0.1), spatial=(0.001, 0.001)), (0.5, 0.5, 0.5), (1, 1, 1)),
    ],
)
def test_block_sizes_follow_from_their_draws(
    cfg: BlockConfig, draws: tuple[float, float, float], size: tuple[int, int, int]
) -> None:
    assert block_size(cfg, (8, 16, 16), draws) == size


@pytest.mark.parametrize(
    ("draw", "target", "context"), [(0.0, (5, 7), (15, 15)), (0.5, (7, 6), (15, 15)), (0.999, (9, 6), (16, 16))]
)
def test_one_draw_decides_on_area_and_aspect_of_an_image_block(
    draw: float, target: tuple[int, int], context: tuple[int, int]
) -> None:
    cfg, frame = ImageBlocksConfig(), (16, 16)
    assert image_block_size(cfg.target_scale, cfg.target_aspect, frame, frame, draw) == target
    assert image_block_size(cfg.context_scale, (1.0, 1.0), frame, frame, draw) == context
    assert image_block_size(cfg.context_scale, (1.0, 1.0), (15, 15), frame, draw) == (15, 15)


def test_a_larger_group_makes_the_task_harder() -> None:
    def kept(size: int) -> float:
        run = with_masks(LARGE, group_size=size)
        return float(np.mean([counts(multiblock_plan(run, 0, step=step))[0] for step in range(60)]))

    assert kept(1) > kept(4) > kept(24)


@pytest.mark.parametrize("kind", ["multiblock", "ijepa"])
def test_neighbouring_seeds_are_as_independent_as_any(kind: str) -> None:
    """Cells and their mirror images are covered as often, and in the first 200 samples as often as in the next."""
    run = with_masks(LARGE if kind == "multiblock" else IMAGES, kind=kind, truncate="none")
    clips = [dataclasses.replace(spec, mask_seed=spec.index) for spec in specs(*range(400))]
    split = splits_for(run, step=0, specs=clips)[0]
    hidden = torch.zeros(400, math.prod(run.grid)).scatter(1, split.target, 1.0)
    share = hidden[:, :256].view(2, 200, 16, 16).mean(dim=1)
    pooled = share.mean(dim=0).clamp(0.02, 0.98)
    spread = (2 * pooled * (1 - pooled) / 200).sqrt()
    assert float(((share - share.flip(1).flip(2)).abs() / spread).max()) < 5
    assert float(((share[0] - share[1]).abs() / spread).max()) < 5

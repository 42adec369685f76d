import dataclasses
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjepa.config import BlockConfig, RunConfig, resolve
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.masks import Split, names, splits_for

LARGE = resolve(None, {"cluster.workers": 0})  # 16 frames of 256 px: grid (8, 16, 16)
TINY = resolve("tiny", {"cluster.workers": 0})  # grid (2, 4, 4), groups of 4


def specs(*indices: int) -> tuple[ClipSpec, ...]:
    window = Window(size_px=256, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=-1)
    return tuple(
        ClipSpec(
            index=i, attempt=0, stream="videos", video=i, uri=str(i), start_s=0.0, frames=16, fps=4.0, window=window,
            pixels="i420", flip=False, mask_seed=(i * 0x9E3779B97F4A7C15) % 2**64, view_seed=i,
        )
        for i in indices
    )  # fmt: skip


def with_masks(run: RunConfig, **changes: object) -> RunConfig:
    return dataclasses.replace(run, masks=dataclasses.replace(run.masks, **changes))


def both(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.context, split.target


def holds(split: Split, tokens: int) -> bool:
    """Rising, in range, disjoint, and not empty."""
    rising = all(bool((ids.diff(dim=1) > 0).all()) for ids in both(split))
    used = torch.cat(both(split), dim=1)
    apart = all(len(row.unique()) == used.shape[1] for row in used)
    filled = split.context.shape[1] > 0 and split.target.shape[1] > 0
    return rising and apart and filled and int(used.min()) >= 0 and int(used.max()) < tokens


@pytest.mark.parametrize("kind", ["multiblock", "tube", "random"])
@pytest.mark.parametrize(("run", "tokens"), [(LARGE, 2048), (TINY, 32)])
def test_context_and_target_are_rising_disjoint_and_in_range(run: RunConfig, tokens: int, kind: str) -> None:
    run = with_masks(run, kind=kind)
    for step in range(5):
        splits = splits_for(run, step=step, specs=specs(*range(3 * step, 3 * step + 3)))
        assert len(splits) == len(names(run.masks))
        assert all(holds(split, tokens) for split in splits)


@pytest.mark.parametrize("kind", ["multiblock", "tube", "random"])
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7))
def test_a_mask_does_not_depend_on_the_batch_it_is_drawn_in(kind: str, order: list[int], cut: int) -> None:
    run = with_masks(TINY, kind=kind)
    whole = splits_for(run, step=3, specs=specs(*range(8)))
    for part in (order[:cut], order[cut:]):
        for split, full in zip(splits_for(run, step=3, specs=specs(*part)), whole, strict=True):
            assert torch.equal(split.context, full.context[part])
            assert torch.equal(split.target, full.target[part])


def test_a_mask_does_not_depend_on_the_world_size_or_accumulation() -> None:
    alone = resolve(None, {"cluster.workers": 1, "train.clips": 8})
    shared = resolve(None, {"cluster.workers": 2, "train.clips": 8, "train.accumulation": 2})
    for a, b in zip(splits_for(alone, step=1, specs=specs(5)), splits_for(shared, step=1, specs=specs(5)), strict=True):
        assert torch.equal(a.context, b.context)
        assert torch.equal(a.target, b.target)


def test_masks_change_with_the_seed_of_the_sample_and_counts_with_the_step() -> None:
    first, second = splits_for(LARGE, step=0, specs=specs(0, 1))
    assert not torch.equal(first.target[0], first.target[1])
    assert not torch.equal(first.target[0], second.target[0][: first.target.shape[1]])
    counts = {splits_for(LARGE, step=step, specs=specs(0))[0].context.shape[1] for step in range(8)}
    assert len(counts) > 4


def test_effective_shares_are_those_of_the_reference_at_24_clips() -> None:
    """Kept and predicted tokens of the short- and the long-range mask; the reference's are means over 300 draws."""
    drawn = (splits_for(LARGE, step=step, specs=specs(0)) for step in range(600))
    counts = np.array([[ids.shape[1] for split in splits for ids in both(split)] for splits in drawn])
    np.testing.assert_allclose(counts.mean(axis=0) / 2048, np.array([501, 966, 133, 1441]) / 2048, rtol=0, atol=0.015)


def test_a_larger_group_makes_the_task_harder() -> None:
    def kept(size: int) -> float:
        run = with_masks(LARGE, group_size=size)
        return float(np.mean([splits_for(run, step=s, specs=specs(s))[0].context.shape[1] for s in range(60)]))

    assert kept(1) > kept(4) > kept(24)


@pytest.mark.parametrize("size", [1, 4])
def test_a_tiny_grid_never_fails(size: int) -> None:
    run = with_masks(TINY, group_size=size)
    for step in range(500 if size == 4 else 50):
        assert all(holds(split, 32) for split in splits_for(run, step=step, specs=specs(step, step + 1)))


def test_blocks_may_cover_whole_frames_for_part_of_the_clip() -> None:
    run = with_masks(LARGE, multiblock=(BlockConfig(blocks=1, temporal=(0.5, 0.5), spatial=(1.0, 1.0)),))
    (split,) = splits_for(run, step=0, specs=specs(0, 1, 2))
    assert holds(split, 2048)
    assert split.context.shape[1] >= 1024


def test_blocks_that_hide_everything_are_refused_with_the_key() -> None:
    run = with_masks(TINY, multiblock=(BlockConfig(blocks=1, spatial=(1.0, 1.0), aspect=(1.0, 1.0)),))
    with pytest.raises(ValueError, match=r"masks.multiblock\[0\].*leaves no context on the token grid \(2, 4, 4\)"):
        splits_for(run, step=0, specs=specs(0))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("predict", [None, 0.1])
def test_random_masks_have_exactly_the_shares_asked_for(ratio: float, predict: float | None) -> None:
    run = with_masks(LARGE, kind="random", ratio=ratio, predict=predict)
    (split,) = splits_for(run, step=0, specs=specs(0, 1))
    assert split.context.shape[1] == round((1 - ratio) * 2048)
    assert split.target.shape[1] == round((ratio if predict is None else predict) * 2048)


@pytest.mark.parametrize("ratio", [0.3, 0.75, 0.9])
def test_tubes_hide_the_same_cells_at_all_times(ratio: float) -> None:
    run = with_masks(LARGE, kind="tube", ratio=ratio)
    (split,) = splits_for(run, step=0, specs=specs(0, 1))
    for ids in both(split):
        by_time = ids.view(2, 8, -1) - 256 * torch.arange(8)[:, None]
        assert torch.equal(by_time, by_time[:, :1].expand_as(by_time))
    assert split.context.shape[1] % 8 == 0
    assert abs(split.context.shape[1] - (1 - ratio) * 2048) <= 4
    assert split.context.shape[1] + split.target.shape[1] == 2048


def test_a_ratio_that_shows_nothing_is_refused_with_the_numbers() -> None:
    run = with_masks(TINY, kind="tube", ratio=0.99)
    with pytest.raises(ValueError, match=r"masks.ratio=0.99 .* show 0 and predict 16 of 16 cells"):
        splits_for(run, step=0, specs=specs(0))


def test_truncation_keeps_the_first_tokens_in_raster_order() -> None:
    """Masks through the whole clip show the same cells of each frame, but for the frames at the end that are cut."""
    (split, _) = splits_for(LARGE, step=2, specs=specs(*range(16)))
    by_time = torch.stack([(split.context // 256 == t).sum(dim=1) for t in range(8)], dim=1)
    whole = by_time == by_time[:, :1]
    assert bool((whole.long().diff(dim=1) <= 0).all())  # once a frame is cut short, so are all after it
    assert bool((by_time <= by_time[:, :1]).all())
    assert not bool(whole.all())


@pytest.mark.bench
def test_masks_of_24_clips_are_drawn_in_milliseconds() -> None:
    clips = specs(*range(24))
    start = time.perf_counter()
    for step in range(50):
        splits_for(LARGE, step=step, specs=clips)
    print(f"24 clips, grid (8, 16, 16), both mask types: {(time.perf_counter() - start) / 50 * 1e3:.2f} ms")

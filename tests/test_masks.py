import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_clips import IMAGES, KINDS, LARGE, TINY, rows, specs, with_masks

from rayjepa.config import BlockConfig, RunConfig, resolve
from rayjepa.masks import Split, is_padded, names, splits_for
from rayjepa.train.engine import to_device


def holds(split: Split, tokens: int) -> bool:
    """Rising, in range, disjoint, and not empty."""
    found = rows(split)
    used = [torch.cat(pair) for pair in found]
    return (
        all(bool((ids.diff() > 0).all()) for pair in found for ids in pair)
        and all(len(ids.unique()) == len(ids) and int(ids.min()) >= 0 and int(ids.max()) < tokens for ids in used)
        and all(len(ids) > 0 for pair in found for ids in pair)
    )


def same(one: Split, other: Split) -> bool:
    pairs = zip(rows(one), rows(other), strict=True)
    return all(torch.equal(a, b) for first, second in pairs for a, b in zip(first, second, strict=True))


def part(split: Split, clips: list[int]) -> Split:
    context, target = split.context_valid, split.target_valid
    return Split(
        context=split.context[clips],
        target=split.target[clips],
        context_valid=None if context is None else context[clips],
        target_valid=None if target is None else target[clips],
    )


@pytest.mark.parametrize(("kind", "truncate"), KINDS)
@pytest.mark.parametrize("run", [LARGE, TINY, IMAGES], ids=["large", "tiny", "images"])
def test_context_and_target_are_rising_disjoint_and_in_range(run: RunConfig, kind: str, truncate: str) -> None:
    if kind == "causal" and run is IMAGES:
        pytest.skip("an image has no future")
    run = with_masks(run, kind=kind, truncate=truncate, min_context=1)
    for step in range(3):
        splits = splits_for(run, step=step, specs=specs(*range(3 * step, 3 * step + 3)))
        assert len(splits) == len(names(run.masks))
        assert all(holds(split, math.prod(run.grid)) for split in splits)


@pytest.mark.parametrize(("kind", "truncate"), KINDS)
@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7))
def test_a_mask_does_not_depend_on_the_batch_it_is_drawn_in(
    kind: str, truncate: str, order: list[int], cut: int
) -> None:
    run = with_masks(TINY, kind=kind, truncate=truncate, min_context=4)
    whole = splits_for(run, step=3, specs=specs(*range(8)))
    for clips in (order[:cut], order[cut:]):
        for split, full in zip(splits_for(run, step=3, specs=specs(*clips)), whole, strict=True):
            assert same(split, part(full, clips))


@pytest.mark.parametrize("changes", [{}, {"masks.same_positions": True}, {"masks.truncate": "random"}])
def test_a_mask_does_not_depend_on_the_world_size_or_accumulation(changes: dict[str, object]) -> None:
    alone = resolve(None, {"cluster.workers": 1, "train.clips": 8, **changes})
    shared = resolve(None, {"cluster.workers": 2, "train.clips": 8, "train.accumulation": 2, **changes})
    for a, b in zip(splits_for(alone, step=1, specs=specs(5)), splits_for(shared, step=1, specs=specs(5)), strict=True):
        assert same(a, b)


def test_masks_change_with_the_seed_of_the_sample_and_counts_with_the_step_and_the_seed_of_the_run() -> None:
    first, second = splits_for(LARGE, step=0, specs=specs(0, 1))
    assert not torch.equal(first.target[0], first.target[1])
    assert not torch.equal(first.target[0], second.target[0][: first.target.shape[1]])
    counts = {splits_for(LARGE, step=step, specs=specs(0))[0].context.shape[1] for step in range(8)}
    assert len(counts) > 4
    other = resolve(None, {"cluster.workers": 0, "seed": 1})
    seeds = [[splits_for(run, step=s, specs=specs(0))[0].context.shape[1] for s in range(4)] for run in (LARGE, other)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("kind", ["multiblock", "ijepa", "tube"])
def test_clips_at_the_same_place_of_a_group_share_a_mask_if_asked(kind: str) -> None:
    run = resolve("tiny", {"cluster.workers": 0, "train.clips": 10})
    run = with_masks(run, kind=kind, truncate="random", group_size=4, same_positions=True, min_context=4)
    for split in splits_for(run, step=2, specs=specs(*range(20, 30))):  # step 2 trains samples 20 to 29
        for place in range(4, 10):
            assert torch.equal(split.context[place], split.context[place - 4])
            assert torch.equal(split.target[place], split.target[place - 4])
        if kind != "ijepa":
            assert len({tuple(row.tolist()) for row in split.target}) > 1
    own = splits_for(with_masks(run, same_positions=False), step=2, specs=specs(20, 24))
    assert any(not torch.equal(split.target[0], split.target[1]) for split in own)


@pytest.mark.parametrize("truncate", ["raster", "random"])
@pytest.mark.parametrize("kind", ["multiblock", "ijepa"])
def test_counts_are_minima_over_the_group_when_it_is_what_clips_take(kind: str, truncate: str) -> None:
    """With masks.same_positions the clips are the group: uncut, their shortest lists are what all are cut to."""
    run = with_masks(LARGE, kind=kind, group_size=6, same_positions=True, truncate=truncate)
    uncut = with_masks(run, truncate="none")
    for step in range(3):
        group = [splits_for(each, step=step, specs=specs(*range(6))) for each in (run, uncut)]
        for split, full in zip(*group, strict=True):
            lengths = [(len(context), len(target)) for context, target in rows(full)]
            assert split.context.shape[1] == min(context for context, _ in lengths)
            assert split.target.shape[1] == min(target for _, target in lengths)
            for short, long in zip(rows(split), rows(full), strict=True):
                for ids, whole in zip(short, long, strict=True):
                    assert set(ids.tolist()) <= set(whole.tolist())
                    assert truncate == "random" or torch.equal(ids, whole[: len(ids)])


@pytest.mark.parametrize(("kind", "truncate"), KINDS)
def test_every_cell_can_be_context_and_can_be_target(kind: str, truncate: str) -> None:
    run = resolve(None, {"cluster.workers": 0, "data.size_px": 128, "data.frames": 8, "masks.group_size": 2})
    run = with_masks(run, kind=kind, truncate=truncate, ratio=0.5)  # grid (4, 8, 8)
    seen, hidden = set[int](), set[int]()
    for step in range(30):
        for split in splits_for(run, step=step, specs=specs(*range(8 * step, 8 * step + 8))):
            seen |= set(split.context.flatten().tolist())
            hidden |= set(split.target.flatten().tolist())
        if len(seen) == len(hidden) == 256:
            break
    assert (len(seen), len(hidden)) == ((128, 128) if kind == "causal" else (256, 256))


@pytest.mark.parametrize("blind", [False, True])
def test_blind_edges_are_never_covered_and_others_are(blind: bool) -> None:
    run = with_masks(IMAGES, blind_edge=blind)
    splits = [split for step in range(20) for split in splits_for(run, step=step, specs=specs(*range(8)))]
    for ids in (torch.cat([split.target.flatten() for split in splits]), splits[0].context.flatten()):
        on_edge = (ids // 16 == 15) | (ids % 16 == 15)
        assert bool(on_edge.any()) != blind


def test_nothing_of_a_clip_is_thrown_away_without_truncation() -> None:
    for split in splits_for(with_masks(LARGE, truncate="none"), step=0, specs=specs(*range(8))):
        for context, target in rows(split):
            assert torch.equal(torch.cat([context, target]).sort().values, torch.arange(2048))


@pytest.mark.parametrize("kind", ["multiblock", "ijepa"])
def test_short_rows_repeat_their_last_id_and_are_marked(kind: str) -> None:
    run = with_masks(LARGE, kind=kind, truncate="none")
    assert is_padded(run.masks)
    split = splits_for(run, step=0, specs=specs(*range(6)))[0]
    assert split.context_valid is not None
    lengths = split.context_valid.sum(dim=1)
    assert int(lengths.max()) == split.context.shape[1] > int(lengths.min()) > 0
    for ids, valid, length in zip(split.context, split.context_valid, lengths.tolist(), strict=True):
        assert bool(valid[:length].all())
        assert bool((ids[length:] == ids[length - 1]).all())
    assert (split.target_valid is None) == (kind == "ijepa")  # its blocks are of one size
    alone = splits_for(run, step=0, specs=specs(0))[0]
    assert alone.context_valid is alone.target_valid is None
    assert not is_padded(with_masks(LARGE, kind="tube", truncate="none").masks)


@pytest.mark.parametrize("truncate", ["raster", "random", "none"])
def test_target_blocks_are_rectangles_through_all_time_that_share_one_context(truncate: str) -> None:
    run = with_masks(LARGE, kind="ijepa", truncate=truncate, targets=3)
    splits = splits_for(run, step=1, specs=specs(0, 1))
    assert len(splits) == 3
    moved = to_device(splits, torch.device("meta"))
    assert all(
        split.context is splits[0].context and split.context_valid is splits[0].context_valid for split in splits
    )
    assert all(split.context is moved[0].context and split.context_valid is moved[0].context_valid for split in moved)
    assert moved[0].target is not moved[1].target
    for split in splits:
        for ids in split.target:
            by_time = ids.view(8, -1) - 256 * torch.arange(8)[:, None]
            assert torch.equal(by_time, by_time[:1].expand_as(by_time))
            tall, wide = ((by_time[0] // 16).unique(), (by_time[0] % 16).unique())
            assert len(tall) * len(wide) == by_time.shape[1]
            assert int(tall[-1] - tall[0]) == len(tall) - 1
            assert int(wide[-1] - wide[0]) == len(wide) - 1


def test_a_context_that_would_be_too_small_overlaps_with_the_last_targets() -> None:
    """Of 16 cells the first target of 4 leaves 12; with a second one fewer than 11 are left, but for the closest."""
    run = with_masks(TINY, kind="ijepa", min_context=11, targets=4, target_scale=(0.25, 0.25), truncate="none")
    shared = torch.zeros(4, dtype=torch.long)
    for step in range(10):
        splits = splits_for(run, step=step, specs=specs(*range(4)))
        assert all(len(context) >= 2 * 11 for context, _ in rows(splits[0]))
        for i, split in enumerate(splits):
            shared[i] += sum(len(set(c.tolist()) & set(t.tolist())) for c, t in rows(split))
    assert shared[0] == 0
    assert bool((shared[1:] > 0).all())


@pytest.mark.parametrize(
    ("ratio", "predict", "seen", "predicted"),
    [
        (0.5, None, 4, 4),
        (0.75, None, 2, 6),
        (0.99, None, 1, 7),
        (0.5, 0.25, 4, 2),
        (0.25, 0.1, 6, 1),
        (0.1, None, 7, 1),
    ],
)
def test_causal_masks_show_the_first_time_slots_and_predict_the_next(
    ratio: float, predict: float | None, seen: int, predicted: int
) -> None:
    (split,) = splits_for(with_masks(LARGE, kind="causal", ratio=ratio, predict=predict), step=0, specs=specs(0, 1))
    expected = torch.arange(256 * (seen + predicted)).split([256 * seen, 256 * predicted])
    for clip in range(2):
        assert torch.equal(split.context[clip], expected[0])
        assert torch.equal(split.target[clip], expected[1])


@pytest.mark.parametrize(("size", "steps"), [(1, 10), (4, 60)])
def test_a_tiny_grid_never_fails(size: int, steps: int) -> None:
    run = with_masks(TINY, group_size=size)
    for step in range(steps):
        assert all(holds(split, 32) for split in splits_for(run, step=step, specs=specs(step, step + 1)))


def test_blocks_may_cover_whole_frames_for_part_of_the_clip() -> None:
    run = with_masks(
        LARGE, multiblock=(BlockConfig(blocks=1, temporal=(0.5, 0.5), spatial=(1.0, 1.0), aspect=(1.0, 1.0)),)
    )
    (split,) = splits_for(run, step=0, specs=specs(0, 1, 2))
    assert holds(split, 2048)
    assert split.context.shape[1] == split.target.shape[1] == 1024
    slots = split.target.view(3, 4, 256)[:, :, 0] // 256
    assert bool((slots.diff(dim=1) == 1).all())  # a run of whole frames
    assert len(slots[:, 0].unique()) > 1


@pytest.mark.parametrize("ratio", [0.1, 0.75, 0.9])
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
    for ids in (split.context, split.target):
        by_time = ids.view(2, 8, -1) - 256 * torch.arange(8)[:, None]
        assert torch.equal(by_time, by_time[:, :1].expand_as(by_time))
    assert split.context.shape[1] == 8 * round((1 - ratio) * 256)
    assert split.context.shape[1] + split.target.shape[1] == 2048


@pytest.mark.parametrize(
    ("run", "changes", "said"),
    [
        (
            TINY,
            {"multiblock": (BlockConfig(blocks=1, spatial=(1.0, 1.0), aspect=(1.0, 1.0)),)},
            r"masks.multiblock\[0\].*leaves no context on the token grid \(2, 4, 4\)",
        ),
        (TINY, {"kind": "tube", "ratio": 0.99}, r"masks.ratio=0.99 .* show 0 and predict 16 of 16 cells"),
        (TINY, {"kind": "random", "predict": 0.01}, r"masks.predict=0.01 show 8 and predict 0 of 32 cells"),
        (TINY, {"kind": "causal", "ratio": 0.1}, r"show 2 and predict 0 of 2 time slots.*raise data.frames"),
        (IMAGES, {"kind": "causal"}, r"show 1 and predict 0 of 1 time slots"),
        (TINY, {"kind": "ijepa", "min_context": 17}, r"4 x 4 tokens has fewer than masks.ijepa.min_context=17"),
        (
            resolve("tiny", {"cluster.workers": 0, "data.size_px": 16, "model.patch_px": 16}),
            {"kind": "ijepa", "blind_edge": True},
            r"blind_edge leaves nothing of the token grid \(2, 1, 1\)",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_key_and_the_numbers(
    run: RunConfig, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        splits_for(with_masks(run, **changes), step=0, specs=specs(0))


@pytest.mark.bench
@pytest.mark.parametrize(("frames", "size"), [(16, 256), (64, 384)])
def test_masks_of_24_clips_are_drawn_in_milliseconds(frames: int, size: int) -> None:
    run = resolve(None, {"cluster.workers": 0, "data.frames": frames, "data.size_px": size})
    clips = specs(*range(24))
    for kind, truncate in KINDS:
        run = with_masks(run, kind=kind, truncate=truncate)
        start = time.perf_counter()
        for step in range(10):
            splits_for(run, step=step, specs=clips)
        print(f"24 clips, grid {run.grid}, {kind}, {truncate}: {(time.perf_counter() - start) * 100:.2f} ms")

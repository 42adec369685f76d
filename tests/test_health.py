import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from made_clips import square

from rayjepa.config import RunConfig, resolve
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.health import (
    ceiling,
    clip_features,
    examine,
    feature_std,
    gathered,
    most_passes,
    random_target,
    rankme,
    share,
)
from rayjepa.model import build, make_target
from rayjepa.views import to_views


def features(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def with_values(values: list[float], n: int = 20) -> torch.Tensor:
    """An (n, D) matrix of the given singular values."""
    left, right = (torch.linalg.qr(features(rows, len(values), seed))[0] for rows, seed in ((n, 1), (len(values), 2)))
    return left @ torch.diag(torch.tensor(values)) @ right.T


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_have_the_rank_they_are(rank: int) -> None:
    assert rankme(with_values([2.0] * rank + [0.0] * (8 - rank))) == pytest.approx(rank, rel=1e-4)


def test_rankme_is_the_exponential_of_the_entropy() -> None:
    values = [4.0, 3.0, 2.0, 1.0]
    shares = [v / 10 for v in values]
    assert rankme(with_values(values)) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_rankme_ignores_scale_and_rotation_but_not_the_mean() -> None:
    x = features(50, 8)
    turned = x @ torch.linalg.qr(features(8, 8, seed=3))[0]
    assert rankme(100 * turned) == pytest.approx(rankme(x), rel=1e-5)
    assert rankme(x + 100) < 0.5 * rankme(x)


def test_collapsed_features_have_rank_one_and_no_spread() -> None:
    collapsed = examine(features(1, 8).expand(50, 8))
    assert collapsed["collapse/rankme"] == pytest.approx(1, abs=1e-3)
    assert collapsed["collapse/std_mean"] == pytest.approx(0, abs=1e-6)
    assert collapsed["collapse/rankme_ceiling"] == 8
    assert rankme(torch.zeros(5, 3)) == 0


def test_a_dead_channel_shows_in_the_smallest_spread_alone() -> None:
    x = features(400, 8)
    x[:, 3] = 5.0
    gauges = examine(x)
    assert gauges["collapse/std_min"] == 0
    assert gauges["collapse/std_mean"] == pytest.approx(7 / 8, rel=0.1)
    torch.testing.assert_close(feature_std(x)[4], x[:, 4].std(correction=0))


def test_features_that_are_not_finite_give_nan_and_not_an_error() -> None:
    x = features(10, 4)
    x[2, 1] = float("inf")
    assert math.isnan(rankme(x))


def test_rank_stays_below_its_ceiling() -> None:
    for n, width in ((5, 30), (30, 5)):
        assert rankme(features(n, width)) <= ceiling(n, width) == 5


def held_out(run: RunConfig, clips: int) -> list[ClipBatch]:
    window = Window(size_px=run.data.size_px, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1)
    specs = [
        ClipSpec(
            index=i, attempt=0, stream="videos", video=i, uri=str(i), start_s=0.0, frames=run.data.frames,
            fps=run.data.fps, window=window, pixels="i420", flip=False, mask_seed=i, view_seed=i,
        )
        for i in range(clips)
    ]  # fmt: skip
    pixels = torch.randint(0, 256, (clips, specs[0].nbytes), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    rows = range(0, clips, 2)
    return [
        ClipBatch(
            index=torch.arange(i, i + 2),
            pixels=pixels[i : i + 2],
            layout=square(specs[i : i + 2]),
            specs=tuple(specs[i : i + 2]),
        )
        for i in rows
    ]


def test_a_clips_feature_is_the_mean_over_tokens_of_the_targets_last_level() -> None:
    run = resolve("tiny", {"cluster.workers": 0})
    target, batches = make_target(build(run).encoder), held_out(run, 6)
    found = clip_features(target, batches, run, device="cpu")
    assert found.shape == (6, run.model.width)
    assert not found.requires_grad
    (level,) = target(to_views(batches[1], run, device="cpu"))
    torch.testing.assert_close(found[2:4], level.mean(dim=1))
    assert clip_features(target, [], run, device="cpu").shape == (0, run.model.width)


@pytest.mark.parametrize("clips", [1, 4, 5, 8, 9])
def test_ranks_with_fewer_clips_run_as_many_forward_passes(clips: int) -> None:
    run = resolve("tiny", {"cluster.workers": 0})
    target, batches = make_target(build(run).encoder), held_out(run, 10)
    runs: list[int] = []
    target.register_forward_hook(lambda *_: runs.append(1))
    counts = [-(-len(share(range(clips), rank=rank, world=2)) // 2) for rank in range(2)]
    for count in counts:
        found = clip_features(target, batches[:count], run, device="cpu", passes=most_passes(clips, world=2, batch=2))
        assert len(found) == 2 * count
    assert len(runs) == 2 * max(counts)


def test_the_floor_is_an_encoder_of_the_same_shape_from_another_seed() -> None:
    run = resolve("tiny", {"cluster.workers": 0})
    floor, start = random_target(run), make_target(build(run).encoder)
    names = [(name, p.shape) for name, p in floor.named_parameters()]
    assert names == [(name, p.shape) for name, p in start.named_parameters()]
    assert not torch.equal(floor.encoder.patch_embed.proj.weight, start.encoder.patch_embed.proj.weight)
    gauges = examine(clip_features(floor, held_out(run, 8), run, device="cpu"))
    assert 1 <= gauges["collapse/rankme"] <= gauges["collapse/rankme_ceiling"] == 8


def test_one_process_gathers_nothing() -> None:
    x = features(5, 3)
    assert gathered(x, 1) is x


def _gather(rank: int, folder: str, counts: tuple[int, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = [gathered(features(n, 4)[share(range(n), rank=rank, world=2)], 2) for n in counts]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_gather_what_one_process_has_in_its_order(tmp_path: Path) -> None:
    counts = (8, 7, 1)  # even, uneven, and nothing for the second rank
    mp.spawn(_gather, args=(str(tmp_path), counts), nprocs=2)
    for rank in range(2):
        for n, found in zip(counts, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert torch.equal(found, features(n, 4))
            assert examine(found) == examine(features(n, 4))

"""Features of the held-out clips: each rank its share, then all of them on every rank, in order."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rayjepa.config import RunConfig
from rayjepa.data.batch import ClipBatch
from rayjepa.model import Target, build, make_target
from rayjepa.views import to_views

Item = TypeVar("Item")


def share(items: Sequence[Item], *, rank: int, world: int) -> Sequence[Item]:
    """What `rank` examines of a held-out list: every world-th item, so that shares differ by one at most."""
    return items[rank::world]


def most_passes(items: int, *, world: int, batch: int) -> int:
    """Forward passes of the rank that `share` gives most."""
    return -(-items // (world * batch))


@torch.no_grad()
def clip_features(
    target: Target, batches: Sequence[ClipBatch], run: RunConfig, *, device: torch.device | str, passes: int = 0
) -> Float[Tensor, "n D"]:
    """One float32 vector per clip of `batches`, in their order: the mean over tokens of the target's last level.

    Under ZeRO-3 ranks exchange weights in every forward pass: a rank with fewer batches than `passes` runs the missing
    ones on a black clip, so that none waits for it.
    """
    rows = [target(to_views(batch, run, device=device))[-1].float().mean(dim=1) for batch in batches]
    size = (1, 3, run.data.frames, run.data.size_px, run.data.size_px)
    for _ in range(passes - len(batches)):
        target(torch.zeros(size, device=device))
    return torch.cat(rows) if rows else torch.empty(0, target.width, device=device)


@torch.no_grad()
def grid_features(
    target: Target, batches: Sequence[ClipBatch], run: RunConfig, *, cells: int, device: torch.device | str
) -> Float[Tensor, "n T {cells} {cells} D"]:
    """Float32 means over the tokens at the last level, of `cells` x `cells` parts of the frame in each time slot.

    Of a grid that is no multiple of `cells`, parts overlap by a token. With 1 cell, the mean over slots is what
    `clip_features` gives.
    """
    rows = [target(to_views(batch, run, device=device))[-1].float() for batch in batches]
    maps = torch.cat([row.unflatten(1, run.grid).permute(0, 4, 1, 2, 3) for row in rows])
    return F.adaptive_avg_pool3d(maps, (run.grid[0], cells, cells)).permute(0, 2, 3, 4, 1)


def gathered(features: Float[Tensor, "n D"], world: int) -> Float[Tensor, "total D"]:
    """Rows of all ranks in the order of the list that `share` was cut from; every rank calls it and gets them all.

    Gloo takes features on the CPU, NCCL on the GPU. `world` is that of `share`; 1 needs no process group.
    """
    if world == 1:
        return features
    assert world == dist.get_world_size(), f"shares are for {world} ranks, the group has {dist.get_world_size()}"
    counts = [torch.zeros(1, dtype=torch.int64, device=features.device) for _ in range(world)]
    _all_gather(counts, torch.tensor([len(features)], device=features.device))
    longest = max(int(count) for count in counts)
    padded = torch.cat((features, features.new_zeros(longest - len(features), features.shape[1])))
    ranks = [torch.empty_like(padded) for _ in range(world)]
    _all_gather(ranks, padded)
    total = sum(int(count) for count in counts)
    return torch.stack(ranks, dim=1).flatten(0, 1)[:total]  # row i of rank r is item i*world + r: padding comes last


def _all_gather(into: list[Tensor], tensor: Tensor) -> None:
    dist.all_gather(into, tensor)  # pyright: ignore[reportUnknownMemberType]  # untyped in PyTorch


def random_target(run: RunConfig) -> Target:
    """An untrained target of the run's shape on the CPU, from another seed: what a gauge reads of it is the floor."""
    return make_target(build(dataclasses.replace(run, seed=run.seed + 1)).encoder)

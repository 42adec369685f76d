"""Runs, clips and reading for the tests of masks."""

import dataclasses

import torch

from rayjepa.config import RunConfig, resolve
from rayjepa.data.clip import ClipSpec, Window
from rayjepa.masks import Split

LARGE = resolve(None, {"cluster.workers": 0})  # 16 frames of 256 px: grid (8, 16, 16), groups of 24
TINY = resolve("tiny", {"cluster.workers": 0})  # grid (2, 4, 4), groups of 4
IMAGES = resolve(None, {"cluster.workers": 0, "data.frames": 1, "masks.kind": "ijepa", "masks.group_size": 4})
# All kinds, and all ways to cut those that are cut.
KINDS = [(kind, cut) for kind in ("multiblock", "ijepa") for cut in ("raster", "random", "none")]
KINDS += [(kind, "raster") for kind in ("tube", "random", "causal")]


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
    """The run with other knobs of masks; those of masks.ijepa by their own names."""
    fields = {field.name for field in dataclasses.fields(run.masks.ijepa)}
    blocks = dataclasses.replace(run.masks.ijepa, **{key: value for key, value in changes.items() if key in fields})
    changes = {key: value for key, value in changes.items() if key not in fields}
    return dataclasses.replace(run, masks=dataclasses.replace(run.masks, **{"ijepa": blocks, **changes}))


def rows(split: Split) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Context and target ids of each clip, without padding."""
    own = [
        torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        for ids, valid in ((split.context, split.context_valid), (split.target, split.target_valid))
    ]
    return [
        (context[seen], target[hidden])
        for context, target, seen, hidden in zip(split.context, split.target, *own, strict=True)
    ]

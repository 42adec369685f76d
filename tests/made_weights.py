"""Small weights of noise in each architecture, for the tests of interop."""

import dataclasses
from typing import Any

import torch

from rayjepa.config import RunConfig, resolve
from rayjepa.interop.weights import Clip, State, Weights, architecture
from rayjepa.model import Jepa

WIDTH = 48
VIDEO: dict[str, Any] = {
    "data.frames": 4,
    "data.size_px": 32,
    "model.width": WIDTH,
    "model.heads": 2,
    "model.depth": 2,
    "model.patch_px": 8,
    "model.rope_pairing": "tiled",
    "predictor.width": 24,
    "predictor.heads": 2,
    "predictor.depth": 1,
    "train.clips": 4,
}
FIXED_CODE: dict[str, Any] = {"model.position": "sincos", "model.init_rescale": False, "predictor.mask_token": "mask"}
IMAGE: dict[str, Any] = {
    **FIXED_CODE,
    "data.frames": 1,
    "model.tubelet": 1,
    "masks.kind": "ijepa",
    "predictor.mask_token": "stream",
}


def made_run(**overrides: Any) -> RunConfig:
    return resolve(None, VIDEO | {key.replace("__", "."): value for key, value in overrides.items()})


def made(*, seed: int = 0, mask_tokens: int | None = None, **overrides: Any) -> Weights:
    """Weights of a run with these knobs: every tensor is noise, the target's another than the encoder's."""
    run = made_run(**overrides)
    generator = torch.Generator().manual_seed(seed)
    encoder, target, predictor = State(), State(), State()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Jepa(run).state_dict().items()}
    if mask_tokens is not None:
        for name in [name for name in shapes if name.startswith("predictor.mask_tokens.")]:
            del shapes[name]
        shapes |= {f"predictor.mask_tokens.{place}": (1, 1, run.predictor.width) for place in range(mask_tokens)}
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        for state in (encoder, target) if part == "encoder" else (predictor,):
            state[rest] = 0.2 * torch.randn(*shape, generator=generator)
    data = run.data
    return Weights(
        model=architecture(run),
        predictor=run.predictor,
        encoder=encoder,
        target=target,
        predictor_state=predictor,
        clip=Clip(frames=data.frames, fps=data.fps, size_px=data.size_px),
        origin="made",
    )


def same(one: State | None, other: State | None) -> bool:
    """Whether names and bits are the same."""
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def with_heads(weights: Weights, heads: int) -> Weights:
    return dataclasses.replace(weights, model=dataclasses.replace(weights.model, heads=heads))

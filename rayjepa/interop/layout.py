"""What other layouts of the same weights share: mask tokens in slots, MLP ratios, tables of position codes."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rayjepa.config import ModelConfig
from rayjepa.interop.weights import State, Weights
from rayjepa.model.places import raster
from rayjepa.model.sincos import sincos


def code_of(model: ModelConfig, *, width: int | None = None) -> Tensor:
    """The sine-cosine code of the model's grid, (1, N, D), of its own width or a predictor's."""
    grid = model.sincos_grid
    assert grid is not None, "weights with a code know its grid"
    places = raster(grid, device=torch.device("cpu")).coordinates
    return sincos(places, width=width or model.width, base=grid, axes=model.sincos_axes).unsqueeze(0)


def is_image(model: ModelConfig) -> bool:
    """Whether this is an I-JEPA: single frames with a sine-cosine code."""
    return model.position == "sincos" and model.sincos_grid is not None and model.sincos_grid[0] == model.tubelet == 1


def ratio_of(hidden: int, width: int, *, is_swiglu: bool = False) -> float:
    """The model.mlp_ratio whose MLP has `hidden` channels."""
    return 1.5 * hidden / width if is_swiglu else hidden / width


def tokens_of(state: Mapping[str, Tensor]) -> list[Tensor]:
    """A predictor's mask tokens in order."""
    found = [name for name in state if re.fullmatch(r"mask_tokens\.\d+", name)]
    return [state[f"mask_tokens.{place}"] for place in range(len(found))]


def padded(tokens: list[Tensor], *, slots: int, mask_token: int | None) -> list[Tensor]:
    """Mask tokens in `slots` places: each in its own and token 0 in the rest, or token `mask_token` in all.

    Raises:  ValueError if there is no such token, or more tokens than slots.
    """
    if mask_token is not None:
        if not 0 <= mask_token < len(tokens):
            raise ValueError(f"mask token {mask_token}: the predictor has tokens 0 to {len(tokens) - 1}")
        return [tokens[mask_token]] * slots
    if len(tokens) > slots:
        raise ValueError(
            f"the predictor has {len(tokens)} mask tokens where {slots} fit; choose one with --mask-token N"
        )
    return tokens + [tokens[0]] * (slots - len(tokens))


def without_image_tokeniser(weights: Weights, state: State, notes: list[str]) -> State:
    """An encoder for clips alone, with a note if that leaves something out.

    Raises:  ValueError if clips of one frame are all that the weights have seen, since nothing else is trained.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("patch_embed_image.")}
    if len(kept) < len(state):
        if weights.clip.frames == 1:
            raise ValueError(
                f"these weights have seen images only, by a tokeniser beside that of {weights.model.tubelet} frames, "
                "which is known neither to Meta's code nor to transformers; use --to torch"
            )
        notes.append("patch_embed_image.*: left out; there, an image is a clip of the same frame repeated")
    return kept

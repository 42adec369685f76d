"""Write Hugging Face's folders of VJEPA2Model and IJepaModel, without transformers: safetensors and JSON.

Names and fields as of transformers 5.23. Its VJEPA2Model is rotary with tiled angles only, takes positions from the
configured crop_size, and calls its predictor with mask token 1; its IJepaModel is an encoder of images.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rayjepa.config import ModelConfig, PredictorConfig
from rayjepa.interop.framing import short_side
from rayjepa.interop.huggingface import OURS
from rayjepa.interop.layout import code_of, is_image, padded, tokens_of, without_image_tokeniser
from rayjepa.interop.names import IMAGE_ENCODER, VIDEO_ENCODER, VIDEO_PREDICTOR, qkv_apart, renamed
from rayjepa.interop.weights import State, Weights, Which, unshared
from rayjepa.model.blocks import EPS
from rayjepa.views import MEAN, STD

SLOTS = 10
"""Mask tokens of every VJEPA2Model that was published."""


def write(weights: Weights, folder: Path, *, which: Which, mask_token: int | None = None) -> list[str]:
    """Write what VJEPA2Model or IJepaModel.from_pretrained loads, and their processor; return what has to be known.

    Raises:  ValueError if transformers has no class for these weights.
    """
    notes: list[str] = []
    state = without_image_tokeniser(weights, weights.chosen(which), notes)
    if is_image(weights.model):
        tensors, config, processor = _image(weights, state, notes)
    else:
        tensors, config, processor = _video(weights, state, mask_token, notes)
    save_file(unshared(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    name = "preprocessor_config.json" if is_image(weights.model) else "video_preprocessor_config.json"
    for file, content in (("config.json", config), (name, processor)):
        (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return notes


def _video(
    weights: Weights, state: State, mask_token: int | None, notes: list[str]
) -> tuple[State, dict[str, Any], dict[str, Any]]:
    """Tensors, configuration and processor of a VJEPA2Model."""
    model, predictor, guess = _has_class(weights)
    tokens = tokens_of(guess)
    if mask_token is None and len(tokens) > 1 and not tokens[1].any():
        notes.append("VJEPA2Model calls its predictor with mask token 1, which is 0 here; --mask-token 0 uses token 0")
    layers = {name: tensor for name, tensor in guess.items() if not name.startswith("mask_tokens.")}
    tensors = renamed(qkv_apart(state), VIDEO_ENCODER) | renamed(qkv_apart(layers), VIDEO_PREDICTOR)
    tensors["predictor.embeddings.mask_tokens"] = torch.stack(padded(tokens, slots=SLOTS, mask_token=mask_token))
    clip = weights.clip
    config = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "dtype": "float32",
        "patch_size": model.patch_px,
        "crop_size": clip.size_px,
        "frames_per_clip": clip.frames,
        "tubelet_size": model.tubelet,
        "hidden_size": model.width,
        "in_chans": 3,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.depth,
        "mlp_ratio": _truncating(state["blocks.0.mlp.fc1.bias"].numel(), model.width),
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "pred_hidden_size": predictor.width,
        "pred_num_attention_heads": predictor.heads,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_mask_tokens": SLOTS,
        "pred_zero_init_mask_tokens": True,
        "pred_mlp_ratio": _truncating(guess["predictor_blocks.0.mlp.fc1.bias"].numel(), predictor.width),
        OURS: SLOTS if mask_token is not None else len(tokens),
    }
    notes.append(f"exact at {clip.size_px} px square only: VJEPA2Model takes positions from its crop_size")
    return tensors, config, _processor(clip.size_px) | {"video_processor_type": "VJEPA2VideoProcessor"}


def _has_class(weights: Weights) -> tuple[ModelConfig, PredictorConfig, State]:
    """Architecture and predictor of weights that VJEPA2Model can hold.

    Raises:  ValueError if it cannot.
    """
    model = weights.model
    if model.position == "sincos":
        raise ValueError(
            "model.position=sincos: transformers has no class for a V-JEPA 1 video model, its VJEPA2Model is rotary; "
            "use --to meta or --to torch"
        )
    if model.rope_pairing != "tiled":
        raise ValueError(
            "model.rope_pairing=interleaved: VJEPA2Model has tiled angles only, with which these weights give other "
            "features; use --to torch, or rayjepa.load, or train with model.rope_pairing=tiled"
        )
    if model.mlp != "gelu":
        raise ValueError(f"model.mlp={model.mlp}: VJEPA2Model has two layers around GELU only; use --to meta or torch")
    if weights.predictor is None or weights.predictor_state is None:
        raise ValueError("these weights have no predictor, and VJEPA2Model always has one; use --to torch")
    return model, weights.predictor, weights.predictor_state


def _image(weights: Weights, state: State, notes: list[str]) -> tuple[State, dict[str, Any], dict[str, Any]]:
    """Tensors, configuration and processor of an IJepaModel, under its names on disk."""
    model, side = weights.model, weights.clip.size_px
    if model.mlp != "gelu":
        raise ValueError(f"model.mlp={model.mlp}: IJepaModel has two layers around GELU only; use --to meta or torch")
    flat = state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].squeeze(2)}
    tensors = renamed(qkv_apart(flat), IMAGE_ENCODER) | {"embeddings.position_embeddings": code_of(model)}
    if weights.predictor is not None:
        notes.append("predictor: left out; transformers has no class for that of I-JEPA")
    grid = model.sincos_grid
    assert grid is not None
    if (grid[1] * model.patch_px, grid[2] * model.patch_px) != (side, side):
        notes.append(f"trained at {side} px; IJepaModel gets the size that its code is made for")
        side = grid[1] * model.patch_px
    config = {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "dtype": "float32",
        "image_size": side,
        "patch_size": model.patch_px,
        "num_channels": 3,
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.depth,
        "intermediate_size": state["blocks.0.mlp.fc1.bias"].numel(),
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "hidden_act": "gelu",
    }
    return tensors, config, _processor(side) | {"image_processor_type": "ViTImageProcessor"}


def _processor(size_px: int) -> dict[str, Any]:
    """Short side to 256/224 of the crop, bilinear, centre crop, ImageNet's mean and standard deviation."""
    return {
        "crop_size": {"height": size_px, "width": size_px},
        "size": {"shortest_edge": short_side(size_px)},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _truncating(hidden: int, width: int) -> float:
    """The ratio that gives `hidden` when its product with `width` is cut to a whole number, as transformers does."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)

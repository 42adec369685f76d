"""Read Hugging Face's folders of VJEPA2Model and IJepaModel, without transformers: safetensors and JSON."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rayjepa.config import ModelConfig, PredictorConfig
from rayjepa.interop.fit import listed
from rayjepa.interop.layout import code_of, ratio_of
from rayjepa.interop.names import (
    IMAGE_ENCODER,
    IMAGE_MEMORY,
    VIDEO_ENCODER,
    VIDEO_PREDICTOR,
    inverse,
    qkv_fused,
    renamed,
)
from rayjepa.interop.weights import Clip, State, Weights, in_float32
from rayjepa.model.blocks import EPS

OURS = "rayjepa_mask_tokens"
"""Field of config.json, unknown to transformers, that says how many mask tokens are no padding."""
CLOSE = 1e-5
"""How far a folder's sine-cosine code may be from ours: both are float32 of float64."""
WHICH = "encoder: which of the two it is, the folder does not say; conversions of Meta's files took the context encoder"


def read(folder: Path) -> Weights:
    """The weights in a folder of VJEPA2Model or IJepaModel, or of a classifier around one, which is left out.

    Raises:  ValueError if it is of another class, sets what we have no knob for, or lacks tensors.
    """
    config = json.loads((folder / "config.json").read_text())
    match config.get("model_type"):
        case "vjepa2":
            return _read_video(folder, config)
        case "ijepa":
            return _read_image(folder, config)
        case kind:
            raise ValueError(f"{folder}: config.json has model_type {kind!r}; vjepa2 and ijepa can be read")


def _read_video(folder: Path, config: Mapping[str, Any]) -> Weights:
    _same(folder, config, {"qkv_bias": True, "hidden_act": "gelu", "in_chans": 3})
    stored, notes = _stored(folder, "vjepa2."), list[str]()
    _note_eps(config.get("layer_norm_eps", 1e-6), notes)
    body = {name: tensor for name, tensor in stored.items() if name.startswith(("encoder.", "predictor."))}
    if rest := sorted(stored.keys() - body.keys()):
        notes.append(f"left out: {listed(rest)}")
    guess = {name: body.pop(name) for name in list(body) if name.startswith("predictor.")}
    tokens = guess.pop("predictor.embeddings.mask_tokens", torch.empty(0))
    encoder = qkv_fused(renamed(body, inverse(VIDEO_ENCODER)))
    guess = qkv_fused(renamed(guess, inverse(VIDEO_PREDICTOR)))
    guess |= {f"mask_tokens.{place}": token for place, token in enumerate(tokens[: config.get(OURS, len(tokens))])}
    width, narrow = config.get("hidden_size", 1024), config.get("pred_hidden_size", 384)
    model = ModelConfig(
        tubelet=config.get("tubelet_size", 2),
        patch_px=config.get("patch_size", 16),
        width=width,
        depth=config.get("num_hidden_layers", 24),
        heads=config.get("num_attention_heads", 16),
        mlp_ratio=ratio_of(int(width * config.get("mlp_ratio", 4.0)), width),
        rope_pairing="tiled",
    )
    predictor = PredictorConfig(
        width=narrow,
        depth=config.get("pred_num_hidden_layers", 12),
        heads=config.get("pred_num_attention_heads", 12),
        mlp_ratio=ratio_of(int(narrow * config.get("pred_mlp_ratio", 4.0)), narrow),
        mask_token="stream",
    )
    notes.append(WHICH)
    return Weights(
        model=model,
        predictor=predictor if guess else None,
        encoder=encoder,
        target=None,
        predictor_state=guess or None,
        clip=Clip(frames=config.get("frames_per_clip", 64), fps=4.0, size_px=config.get("crop_size", 256)),
        origin=str(folder),
        notes=tuple(notes),
    )


def _read_image(folder: Path, config: Mapping[str, Any]) -> Weights:
    _same(folder, config, {"qkv_bias": True, "hidden_act": "gelu", "num_channels": 3})
    stored, notes = _stored(folder, "ijepa."), list[str]()
    stored = renamed(stored, IMAGE_MEMORY)
    _note_eps(config.get("layer_norm_eps", 1e-12), notes)
    code = stored.pop("embeddings.position_embeddings", None)
    rest = [name for name in stored if name.startswith(("classifier.", "pooler.", "embeddings.mask_token"))]
    if rest:
        notes.append(f"left out: {listed(rest)}")
    patch, side = config.get("patch_size", 16), config.get("image_size", 224)
    body = {name: tensor for name, tensor in stored.items() if name not in rest}
    encoder = qkv_fused(renamed(body, inverse(IMAGE_ENCODER)))
    if "patch_embed.proj.weight" in encoder:
        encoder["patch_embed.proj.weight"] = encoder["patch_embed.proj.weight"].unsqueeze(2)
    width = config.get("hidden_size", 768)
    model = ModelConfig(
        tubelet=1,
        patch_px=patch,
        width=width,
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        mlp_ratio=ratio_of(config.get("intermediate_size", 3072), width),
        position="sincos",
        sincos_grid=(1, side // patch, side // patch),
        rope_pairing="tiled",
        init_rescale=False,
    )
    own = code_of(model)
    if code is None or code.shape != own.shape or not torch.allclose(code, own, atol=CLOSE, rtol=0):
        raise ValueError(
            f"{folder}: embeddings.position_embeddings is not the fixed sine-cosine code of {side // patch} x "
            f"{side // patch} places (it was trained on, or resized), and we have no other"
        )
    notes.append(WHICH)
    return Weights(
        model=model,
        predictor=None,
        encoder=encoder,
        target=None,
        predictor_state=None,
        clip=Clip(frames=1, fps=4.0, size_px=side),
        origin=str(folder),
        notes=tuple(notes),
    )


def _stored(folder: Path, prefix: str) -> State:
    """All tensors of a folder in float32, without the name that a classifier has for the model in it."""
    index = folder / "model.safetensors.index.json"
    files: Iterable[str] = ["model.safetensors"]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    state: State = {}
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder} has no {file}; pickles (pytorch_model.bin) are not read: save it as safetensors"
            )
        state |= load_file(folder / file)
    return in_float32({name.removeprefix(prefix): tensor for name, tensor in state.items()})


def _same(folder: Path, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises:  ValueError if a field of config.json is set to what our modules are not."""
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder}: config.json has {name}={config[name]}; our encoder has {value} only")


def _note_eps(eps: float, notes: list[str]) -> None:
    if not math.isclose(eps, EPS):
        notes.append(f"layer_norm_eps is {eps:g} there and {EPS:g} here: features differ where a token hardly varies")

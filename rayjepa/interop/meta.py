"""Files of V-JEPA, V-JEPA 2 and I-JEPA as Meta's code writes and reads them.

A file is a pickled dictionary with the state dicts `encoder`, `target_encoder` and `predictor`, whose names begin with
`module.backbone.` (V-JEPA) or `module.` (I-JEPA). Heads are in no tensor's shape: they are taken from the sizes that
Meta released, or given. Rotary angles are the tiled ones in all of them.
"""

import dataclasses
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rayjepa.config import ModelConfig, PredictorConfig
from rayjepa.interop.fit import listed
from rayjepa.interop.layout import code_of, is_image, padded, ratio_of, tokens_of, without_image_tokeniser
from rayjepa.interop.weights import Clip, Given, State, Weights, Which, in_float32

HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16, (1664, 48): 16}
"""By width and depth. Source: the builders of vision_transformer.py in facebookresearch/jepa, ijepa and vjepa2."""
ROPE_HEADS = {(1408, 40): 22, (1664, 48): 26}
"""Where V-JEPA 2 has other heads than V-JEPA and I-JEPA: its *_xformers builders."""
PREDICTOR_WIDTH, ROPE_PREDICTOR_HEADS = 384, 12
"""Of all released predictors; with sine-cosine codes a predictor has as many heads as its encoder."""
CLOSE = 1e-5
"""How far a file's sine-cosine code may be from ours: both are float32 of float64."""


def read(path: Path, given: Given) -> Weights:
    """The weights in a file of Meta's.

    Raises:  ValueError if it is none, if it holds more than tensors and plain values (a pickle with code is never
             run), if what its shapes do not say is unknown and not given, or if its tensors do not fit.
    """
    parts = _parts(path)
    encoder = parts.get("encoder") or parts["target_encoder"]
    notes: list[str] = []
    if "encoder" not in parts:
        notes.append("encoder: the file has target_encoder only, which stands for both")
    model, clip = _model(path, encoder, given, notes)
    predictor, predictor_state = None, None
    if "predictor" in parts:
        predictor, predictor_state = _predictor(path, parts["predictor"], model, given, notes)
    target = parts.get("target_encoder") if "encoder" in parts else None
    return Weights(
        model=model,
        predictor=predictor,
        encoder=_ours(encoder),
        target=None if target is None else _ours(target),
        predictor_state=predictor_state,
        clip=clip,
        origin=str(path),
        notes=tuple(notes),
    )


def write(
    weights: Weights, folder: Path, *, which: Which | None, mask_token: int | None = None
) -> tuple[Path, list[str]]:
    """Write a file that Meta's loaders read, and return it with what was left out or has to be known.

    `which`: the one encoder to put under both names; none: each under its own.
    Raises:  ValueError if Meta's code would compute something else with these weights.
    """
    model, notes = weights.model, list[str]()
    if model.position == "rope" and model.rope_pairing != "tiled":
        raise ValueError(
            "model.rope_pairing=interleaved: Meta's code has tiled angles only, with which these weights give other "
            "features; use --to torch, or rayjepa.load, or train with model.rope_pairing=tiled"
        )
    as_image = is_image(model)
    prefix = "module." if as_image else "module.backbone."
    context, target = (
        without_image_tokeniser(weights, weights.chosen(which or own), notes) for own in ("context", "target")
    )
    code = code_of(model) if model.position == "sincos" else None
    payload: dict[str, Any] = {
        name: {f"{prefix}{key}": tensor for key, tensor in _theirs(state, code, as_image=as_image).items()}
        for name, state in (("encoder", context), ("target_encoder", target))
    }
    if weights.predictor is not None and weights.predictor_state is not None:
        states = _their_predictor(weights, weights.predictor, as_image=as_image, mask_token=mask_token)
        payload["predictor"] = {f"{prefix}{key}": tensor for key, tensor in states.items()}
    payload |= {"opt": None, "scaler": None, "epoch": 0, "loss": None, "batch_size": 0, "world_size": 1, "lr": None}
    path = folder / ("latest.pt" if model.position == "rope" else "jepa-latest.pth.tar")
    torch.save(payload, path)
    return path, notes


def _parts(path: Path) -> dict[str, State]:
    """The state dicts of a file, without their prefixes."""
    loaded = _loaded(path)
    named = {
        name: loaded[name]
        for name in ("encoder", "target_encoder", "predictor")
        if isinstance(loaded.get(name), Mapping)
    }
    parts = {name: _stripped(cast("Mapping[str, Any]", state)) for name, state in named.items()}
    if not {"encoder", "target_encoder"} & parts.keys():
        bare = _stripped(loaded)
        if "patch_embed.proj.weight" not in bare:
            raise ValueError(
                f"{path} is no file of Meta's: it has neither encoder nor target_encoder, nor patch_embed.proj.weight; "
                f"its keys are {listed(sorted(map(str, loaded)))}"
            )
        parts["encoder"] = bare
    return parts


def _loaded(path: Path) -> Mapping[str, Any]:
    """What a file holds, unpickled without running anything."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ValueError(
            f"{path} holds more than tensors and plain values, and was not read: a pickle can run code ({reason}). "
            "Where you trust its author, save its state dicts alone: torch.save({'encoder': …, 'predictor': …}, …)"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise RuntimeError(f"{path} cannot be read by torch.load: {error}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of state dicts")
    return cast("Mapping[str, Any]", loaded)


def _is_zip(path: Path) -> bool:
    """Whether PyTorch can map the file: what it wrote before version 1.6 was no archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _stripped(state: Mapping[str, Any]) -> State:
    """Tensors by name without the prefixes of their wrappers."""
    return {
        re.sub(r"^(module\.|backbone\.)+", "", name): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }


def _model(path: Path, encoder: State, given: Given, notes: list[str]) -> tuple[ModelConfig, Clip]:
    """The architecture, from shapes, known sizes and what was given; what was not certain goes to `notes`."""
    weight, first = encoder.get("patch_embed.proj.weight"), encoder.get("blocks.0.mlp.fc1.weight")
    if weight is None or first is None:
        raise ValueError(f"{path}: the encoder lacks patch_embed.proj.weight or blocks.0.mlp.fc1.weight")
    width, depth = weight.shape[0], _depth(encoder, "blocks")
    has_code = "pos_embed" in encoder
    position = given.position or ("sincos" if has_code else "rope")
    if has_code and given.position is None and weight.dim() == 5:
        notes.append(
            "position: sincos, since the file has pos_embed; some files of V-JEPA 2 carry one that is not used: for "
            "these give --position rope"
        )
    known = (HEADS | ROPE_HEADS if position == "rope" else HEADS).get((width, depth))
    heads = given.heads or known
    if heads is None:
        raise ValueError(
            f"{path}: how many heads an encoder of width {width} and depth {depth} has is not in its tensors, and it "
            "is none of Meta's sizes; give it: rayjepa import … --heads N"
        )
    if given.heads is None:
        notes.append(f"heads: {heads}, as Meta's encoder of width {width} and depth {depth} has; not in the file")
    if position == "rope":
        notes.append("rotary pairing: tiled, as in all of Meta's weights; not in the file")
    is_swiglu = "blocks.0.mlp.fc3.weight" in encoder
    model = ModelConfig(
        tubelet=weight.shape[2] if weight.dim() == 5 else 1,
        patch_px=weight.shape[-1],
        width=width,
        depth=depth,
        heads=heads,
        mlp="swiglu" if is_swiglu else "gelu",
        mlp_ratio=ratio_of(first.shape[0], width, is_swiglu=is_swiglu),
        position=position,
        rope_pairing="tiled",
        init_rescale=position == "rope",
    )
    if position == "rope":
        clip = Clip(frames=given.frames or 16, fps=4.0, size_px=given.size_px or 256)
        notes.append(f"clips: {clip.frames} frames of {clip.size_px} px, if not given otherwise; not in the file")
        return model, clip
    return _with_code(path, encoder.get("pos_embed"), model, given, notes, is_image=weight.dim() == 4)


def _with_code(
    path: Path, code: Tensor | None, model: ModelConfig, given: Given, notes: list[str], *, is_image: bool
) -> tuple[ModelConfig, Clip]:
    """The same architecture with the grid of its sine-cosine code, which must be that of the file."""
    if code is None:
        raise ValueError(f"{path} has no pos_embed, so its positions are not sine-cosine codes; use --position rope")
    tokens = code.shape[1]
    frames = 1 if is_image else given.frames or 16
    slots = max(1, frames // model.tubelet)
    side = (given.size_px or 0) // model.patch_px or math.isqrt(tokens // slots)
    if slots * side * side != tokens:
        raise ValueError(
            f"{path}: pos_embed has {tokens} places, which {slots} time slots ({frames} frames) of {side} x {side} do "
            "not make; give --frames T, and --size PX"
        )
    if not is_image and given.frames is None:
        notes.append(
            f"clips: {frames} frames of {side * model.patch_px} px, by the length of pos_embed; not in the file"
        )
    for axes in ("equal", "time_half"):
        found = dataclasses.replace(
            model, sincos_axes=cast("Literal['equal', 'time_half']", axes), sincos_grid=(slots, side, side)
        )
        if torch.allclose(code_of(found), code.float(), atol=CLOSE, rtol=0):
            return found, Clip(frames=frames, fps=4.0, size_px=side * model.patch_px)
    raise ValueError(
        f"{path}: pos_embed is not the fixed sine-cosine code of a grid of {slots} x {side} x {side} tokens; if it is "
        "of another grid, give --frames and --size; if the file's model is rotary, --position rope"
    )


def _predictor(
    path: Path, state: State, model: ModelConfig, given: Given, notes: list[str]
) -> tuple[PredictorConfig | None, State | None]:
    """The predictor's architecture and tensors; none if it is one that we have no class for."""
    if "predictor_embed.weight" not in state or any(name.startswith("action_encoder.") for name in state):
        notes.append("predictor: left out; it is not that of pretraining (V-JEPA 2-AC has another)")
        return None, None
    width, depth = state["predictor_embed.weight"].shape[0], _depth(state, "predictor_blocks")
    known = ROPE_PREDICTOR_HEADS if model.position == "rope" else model.heads
    heads = given.predictor_heads or (known if width == PREDICTOR_WIDTH else None)
    if heads is None:
        raise ValueError(
            f"{path}: how many heads a predictor of width {width} has is not in its tensors; give it: "
            "rayjepa import … --predictor-heads N"
        )
    if given.predictor_heads is None:
        notes.append(f"predictor heads: {heads}, as in Meta's predictors of width {width}; not in the file")
    kept = {name: tensor for name, tensor in state.items() if name != "predictor_pos_embed"}
    if "mask_token" in kept:  # I-JEPA has one for all
        kept["mask_tokens.0"] = kept.pop("mask_token")
    tokens = tokens_of(kept)
    if len(tokens) > 1 and tokens[0].any() and not all(token.any() for token in tokens):
        dead = [str(place) for place, token in enumerate(tokens) if not token.any()]
        notes.append(f"mask tokens {', '.join(dead)} of {len(tokens)} are zero: they were never trained")
    hidden = state["predictor_blocks.0.mlp.fc1.weight"].shape[0]
    predictor = PredictorConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio_of(hidden, width, is_swiglu=model.mlp == "swiglu"),
        mask_token="mask" if model.position == "sincos" and len(tokens) > 1 else "stream",
    )
    return predictor, in_float32(kept)


def _depth(state: State, blocks: str) -> int:
    places = [int(found[1]) for name in state if (found := re.match(rf"{blocks}\.(\d+)\.", name))]
    return max(places, default=-1) + 1


def _ours(state: State) -> State:
    """An encoder without its code, which we compute; a tokeniser of images is one of clips of one frame."""
    kept = {name: tensor for name, tensor in in_float32(state).items() if name != "pos_embed"}
    weight = kept["patch_embed.proj.weight"]
    if weight.dim() == 4:
        kept["patch_embed.proj.weight"] = weight.unsqueeze(2)
    return kept


def _theirs(state: State, code: Tensor | None, *, as_image: bool) -> State:
    """An encoder with its code, as Meta's modules name and shape it."""
    if as_image:
        state = state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].squeeze(2)}
    return state if code is None else {"pos_embed": code, **state}


def _their_predictor(weights: Weights, predictor: PredictorConfig, *, as_image: bool, mask_token: int | None) -> State:
    state = weights.predictor_state
    assert state is not None
    tokens = tokens_of(state)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("mask_tokens.")}
    if as_image:
        kept["mask_token"] = padded(tokens, slots=1, mask_token=mask_token)[0]
    else:
        chosen = tokens if mask_token is None else padded(tokens, slots=len(tokens), mask_token=mask_token)
        kept |= {f"mask_tokens.{place}": token for place, token in enumerate(chosen)}
    if weights.model.position == "sincos":
        kept["predictor_pos_embed"] = code_of(weights.model, width=predictor.width)
    return kept

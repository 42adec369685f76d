"""Weights outside training: one form for all, and one reader of whatever holds weights."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayjepa.config import ModelConfig, PredictorConfig, RunConfig, phases_of, resolve, streams_of
from rayjepa.config.resolve import lists
from rayjepa.interop.fit import encoder_shapes, has_image_tokeniser, mask_tokens, predictor_shapes, require_fit
from rayjepa.train.pieces import Stored, read_index
from rayjepa.train.restart import parse_name, read_state, restart_point

State = dict[str, Tensor]
Which = Literal["target", "context"]
"""The target (the encoder's moving average), or the context encoder, which is what gradients train."""

MODEL, TENSORS, ORIGIN = "model.yaml", "weights.safetensors", "origin.json"
"""Files of a folder of weights: a preset, the tensors as `part|name`, and where they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What the weights were trained to see."""

    frames: int
    fps: float
    size_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a file of Meta's does not say, as far as the user does; none: from its shapes, or the sizes we know."""

    heads: int | None = None
    predictor_heads: int | None = None
    position: Literal["rope", "sincos"] | None = None
    frames: int | None = None
    size_px: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors in float32 under the names of our modules, and the architecture that they belong to."""

    model: ModelConfig
    """With model.position=sincos, model.sincos_grid is set."""
    predictor: PredictorConfig | None
    encoder: State
    """The context encoder; the only one, if the source does not say which of the two it holds."""
    target: State | None
    """The encoder's moving average, if it is there beside it."""
    predictor_state: State | None
    clip: Clip
    origin: str
    """The source, in words."""
    notes: tuple[str, ...] = ()
    """What was not certain, and what was left out."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the run that trained them, for a model card; empty if unknown."""

    def __post_init__(self) -> None:
        """Raises:  ValueError naming tensors that are missing, too many, or of another shape."""
        wanted = encoder_shapes(self.model, images=has_image_tokeniser(self.encoder))
        require_fit(f"{self.origin}: the encoder", self.encoder, wanted)
        if self.target is not None:
            require_fit(f"{self.origin}: the target", self.target, wanted)
        if self.predictor is not None and self.predictor_state is not None:
            tokens = mask_tokens(self.predictor_state)
            shapes = predictor_shapes(self.model, self.predictor, mask_tokens=tokens)
            require_fit(f"{self.origin}: the predictor", self.predictor_state, shapes)

    def chosen(self, which: Which) -> State:
        """The encoder asked for; a source with one encoder gives that one."""
        return self.target if which == "target" and self.target is not None else self.encoder

    def said(self, which: Which) -> str:
        """In words, what `chosen` gives."""
        if self.target is None:
            return "the source's only encoder"
        return "target (moving average of the encoder)" if which == "target" else "context encoder"

    def only(self, which: Which) -> "Weights":
        """The same with one encoder."""
        notes = (*self.notes, f"encoder: {self.said(which)}")
        return dataclasses.replace(self, encoder=self.chosen(which), target=None, notes=notes)


def read_weights(source: str | Path, *, given: Given = Given()) -> Weights:
    """The weights in a run, a checkpoint, what `rayjepa import` wrote, a file of Meta's or a Hugging Face folder.

    Raises:  ValueError if it is none of these or its tensors do not fit each other; RuntimeError if it is torn.
    """
    path = Path(source).expanduser()
    if path.is_file():
        from rayjepa.interop import meta

        return meta.read(path, given)
    if given != Given():
        raise ValueError(f"{path} says its heads, positions and sizes itself; they are given for files of Meta's only")
    if (path / TENSORS).is_file():
        return _read_folder(path)
    if (path / "state.json").is_file() or parse_name(path.name) is not None:
        return _read_checkpoint(path)
    if (path / "run.yaml").is_file():
        newest = restart_point(path)
        if newest is None:
            raise ValueError(f"{path} has no complete checkpoint yet, so it has no weights to read")
        return _read_checkpoint(newest)
    if (path / "config.json").is_file():
        from rayjepa.interop import huggingface

        return huggingface.read(path)
    what = "holds no weights" if path.is_dir() else "does not exist"
    raise ValueError(
        f"{path} {what}; give a run folder, a checkpoint folder, a folder that `rayjepa import` wrote, "
        "a .pt or .pth.tar file of Meta's, or a Hugging Face folder with config.json and safetensors"
    )


def write_weights(weights: Weights, folder: Path) -> None:
    """Write a folder of weights, which `read_weights` reads; its model.yaml is a preset too.

    Raises:  ValueError if the folder holds anything already.
    """
    new_folder(folder)
    tensors = {f"encoder|{name}": tensor for name, tensor in weights.encoder.items()}
    tensors |= {f"target|{name}": tensor for name, tensor in (weights.target or {}).items()}
    tensors |= {f"predictor|{name}": tensor for name, tensor in (weights.predictor_state or {}).items()}
    save_file(unshared(tensors), folder / TENSORS)
    preset: dict[str, Any] = {"model": dataclasses.asdict(weights.model), "data": dataclasses.asdict(weights.clip)}
    if weights.predictor is not None:
        preset["predictor"] = dataclasses.asdict(weights.predictor)
    (folder / MODEL).write_text(yaml.safe_dump(lists(preset), sort_keys=False))
    origin = {"origin": weights.origin, "notes": list(weights.notes), "facts": dict(weights.facts)}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")


def new_folder(folder: Path) -> None:
    """Make `folder`, with those above it.

    Raises:  ValueError if it holds anything already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: nothing is overwritten; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)


def unshared(tensors: Mapping[str, Tensor]) -> State:
    """The same tensors, each in memory of its own, as safetensors wants them."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def in_float32(state: Mapping[str, Tensor]) -> State:
    """The same tensors in float32, which is what is trained."""
    return {name: tensor.float() for name, tensor in state.items()}


def _read_folder(folder: Path) -> Weights:
    run = resolve(str(folder / MODEL), {})
    origin = json.loads((folder / ORIGIN).read_text())
    parts: dict[str, State] = {"encoder": {}, "target": {}, "predictor": {}}
    for key, tensor in load_file(folder / TENSORS).items():
        part, _, name = key.partition("|")
        parts[part][name] = tensor
    return Weights(
        model=run.model,
        predictor=run.predictor if parts["predictor"] else None,
        encoder=parts["encoder"],
        target=parts["target"] or None,
        predictor_state=parts["predictor"] or None,
        clip=Clip(frames=run.data.frames, fps=run.data.fps, size_px=run.data.size_px),
        origin=f"{folder} ({origin['origin']})",
        notes=tuple(origin["notes"]),
        facts=origin["facts"],
    )


def _read_checkpoint(folder: Path) -> Weights:
    state = read_state(folder)
    run = resolve(str(folder / "run.yaml"), {})
    shapes, stored = read_index(folder, shards=state.world)
    parts: dict[str, State] = {"encoder": {}, "predictor": {}, "target": {}}
    for (kind, name), shape in shapes.items():
        if kind in ("master", "buffer"):
            part, _, rest = name.partition(".")
            parts[part][rest] = _assembled(stored[kind, name], shape)
        elif kind == "target":
            parts["target"][name] = _assembled(stored[kind, name], shape)
    return Weights(
        model=architecture(run),
        predictor=run.predictor,
        encoder=parts["encoder"],
        target=parts["target"],
        predictor_state=parts["predictor"],
        clip=_clip_at(run, state.finished),
        origin=f"{folder}, after step {state.finished}",
    )


def architecture(run: RunConfig) -> ModelConfig:
    """The run's encoder as a thing of its own: what it began from is forgotten, and the grid of its code is said."""
    grid = run.model.sincos_grid or run.grid if run.model.position == "sincos" else None
    return dataclasses.replace(run.model, init=None, sincos_grid=grid)


def _clip_at(run: RunConfig, finished: int) -> Clip:
    """The longest clips that the phase of the last finished step was fed with."""
    at = max(finished - 1, 0)
    phase = next((phase for phase in phases_of(run) if at < phase.stop), phases_of(run)[-1])
    data = max((stream.run.data for stream in streams_of(phase.run)), key=lambda data: data.frames)
    return Clip(frames=data.frames, fps=data.fps, size_px=data.size_px)


def _assembled(parts: list[Stored], shape: tuple[int, ...]) -> Tensor:
    """A whole tensor from its stretches, which are in order and without holes."""
    found: list[Tensor] = []
    for part in parts:
        with safe_open(part.file, framework="pt") as file:
            found.append(file.get_tensor(part.key))
    return (found[0] if len(found) == 1 else torch.cat(found)).view(shape)

"""model.init: a new run that begins with trained weights, and what of them it does not take."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rayjepa.config import ModelConfig, PredictorConfig, RunConfig
from rayjepa.interop.fit import Shapes, listed, shapes_of
from rayjepa.interop.weights import Weights, architecture, read_weights
from rayjepa.model import Jepa
from rayjepa.train.engine import Engine
from rayjepa.train.folder import replace_text
from rayjepa.train.pieces import Key, Tensors

log = logging.getLogger(__name__)

REPORT = "init.json"
"""File of the run folder that says what a run began with."""
OPTIONAL = "encoder.patch_embed_image."
"""Tensors of an encoder that it may begin without."""
MASK_TOKENS = "predictor.mask_tokens."


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Tensors that a run begins with, by kind and name of a checkpoint's pieces."""

    tensors: Tensors
    lines: tuple[str, ...]
    """For people: where they are from, and what begins anew and why."""


def require_start(run: RunConfig) -> None:
    """Say what a run would begin with, if model.init is set; nothing is loaded.

    Raises:  ValueError if there are no such weights, or they do not fit the run's model; RuntimeError if they are torn.
    """
    if run.model.init is not None:
        for line in start_of(run).lines:
            log.info("%s", line)


def begin(engine: Engine, run: RunConfig, run_dir: Path) -> None:
    """Give an untrained engine the weights of model.init, if it is set, and note it in the run folder.

    All ranks call it, and each reads the weights.
    Raises:  ValueError if there are no such weights, or they do not fit the run's model; RuntimeError if they are torn.
    """
    if run.model.init is None:
        return
    start = start_of(run)
    engine.adopt(start.tensors)
    if engine.rank == 0:
        log.info("%s", start.lines[0])
        replace_text(run_dir / REPORT, json.dumps({"init": run.model.init, "report": start.lines}, indent=2))


def start_of(run: RunConfig) -> Start:
    """What a run of this configuration begins with.

    Raises:  ValueError naming tensors, shapes and knobs that differ.
    """
    assert run.model.init is not None, "asked only where there is one"
    weights = read_weights(run.model.init)
    with torch.device("meta"):
        wanted = shapes_of(Jepa(run).state_dict())
    given = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()}
    given |= {f"predictor.{name}": tensor for name, tensor in (weights.predictor_state or {}).items()}
    _require_same(run, weights, wanted, shapes_of(given))
    taken = {name: tensor for name, tensor in given.items() if name in wanted}
    target = weights.encoder if weights.target is None else weights.target
    target = {name: tensor for name, tensor in target.items() if f"encoder.{name}" in wanted}
    tensors: dict[Key, torch.Tensor] = {}
    for name, tensor in taken.items():
        tensors["master", name] = tensors["buffer", name] = tensor  # frozen parameters are stored as buffers
    tensors |= {("target", name): tensor for name, tensor in target.items()}
    return Start(tensors=tensors, lines=tuple(_lines(run, weights, set(wanted), set(given))))


def _lines(run: RunConfig, weights: Weights, wanted: set[str], given: set[str]) -> Iterator[str]:
    yield f"model.init: the run begins with {weights.origin}"
    for note in weights.notes:
        yield f"model.init: of its source: {note}"
    if weights.target is None:
        yield "model.init: the target begins equal to the encoder, since the source has one encoder"
    if weights.predictor_state is None:
        yield "model.init: the predictor begins untrained, since the source has none"
    new = sorted(name for name in wanted - given if name.startswith((OPTIONAL, MASK_TOKENS)))
    if new and weights.predictor_state is not None:
        yield f"model.init: begins untrained, since the source lacks it: {listed(new)}"
    if left := sorted(given - wanted):
        yield f"model.init: not loaded, since the run's model has no place for it: {listed(left)}"
    here, there = architecture(run).sincos_grid, weights.model.sincos_grid
    if here != there:
        yield (
            f"model.init: the position code is made for a grid of {here} tokens, that of the weights for {there}; to "
            f"stretch theirs over the run's clips, set model.sincos_grid={list(there or ())}"
        )
    yield "model.init: optimizer, schedules and steps begin anew"


def _require_same(run: RunConfig, weights: Weights, wanted: Shapes, given: Shapes) -> None:
    """Raises:  ValueError if the run's model is not that of the weights; what may differ is left out by the caller."""
    knobs = list(_knobs("model", run.model, weights.model))
    if weights.predictor is not None:
        knobs += _knobs("predictor", run.predictor, weights.predictor)
    wrong = [name for name in sorted(wanted.keys() & given.keys()) if wanted[name] != given[name]]
    needed = wanted.keys() if weights.predictor_state is not None else {n for n in wanted if n.startswith("encoder.")}
    missing = sorted(n for n in needed - given.keys() if not n.startswith((OPTIONAL, MASK_TOKENS)))
    extra = sorted(n for n in given.keys() - wanted.keys() if not n.startswith((OPTIONAL, MASK_TOKENS)))
    if not (knobs or wrong or missing or extra):
        return
    reasons = [f"set {', '.join(knobs)}"] if knobs else []
    if wrong:
        shapes = [f"{name} is {list(given[name])} there and {list(wanted[name])} here" for name in wrong]
        reasons.append(listed(shapes))
    if missing:
        reasons.append(f"the weights lack {listed(missing)}")
    if extra:
        reasons.append(f"the run's model has no {listed(extra)}")
    if any(name.startswith("predictor.") for name in wrong + missing + extra):
        reasons.append(f"to begin with the encoder alone: rayjepa import {run.model.init} --no-predictor -o FOLDER")
    raise ValueError(f"model.init={run.model.init} does not fit this run's model: {'; '.join(reasons)}")


def _knobs(section: str, here: ModelConfig | PredictorConfig, there: ModelConfig | PredictorConfig) -> Iterator[str]:
    """Knobs that give the weights another meaning or shape, as the weights need them."""
    names = ["width", "depth", "heads"]
    if isinstance(here, ModelConfig) and isinstance(there, ModelConfig):
        names += ["tubelet", "patch_px", "mlp", "position"]
        if here.position == there.position == "rope":
            names.append("rope_pairing")
        if here.position == there.position == "sincos" and (there.sincos_grid or (1,))[0] > 1:
            names.append("sincos_axes")
    for name in names:
        ours, theirs = getattr(here, name), getattr(there, name)
        if ours != theirs:
            yield f"{section}.{name}={theirs} (it is {ours})"
    if round(here.width * here.mlp_ratio) != round(there.width * there.mlp_ratio):
        yield f"{section}.mlp_ratio={there.mlp_ratio} (it is {here.mlp_ratio})"

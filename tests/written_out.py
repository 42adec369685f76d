"""Training written out in plain PyTorch, in one process: what every engine, stage and world size is compared with.

It takes the model, the masks, the views and the made clips from the package, and nothing of rayjepa/train: averaging,
clipping, AdamW, the target and the loss are its own. Rates are those of made_clips.take_step.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from made_clips import made_clips
from torch import Tensor, nn

from rayjepa.config import RunConfig
from rayjepa.masks import splits_for
from rayjepa.model import Jepa, build
from rayjepa.views import to_views

LR, DECAY, MOMENTUM = 1e-3, 0.04, 0.9

State = dict[tuple[str, str], Tensor]
"""Tensors by what a checkpoint calls them: (kind, name)."""


@dataclass
class WrittenOut:
    """Losses of all steps, the gradient norm of each before clipping, and the state after those steps in `keep`."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)


def train_written_out(run: RunConfig, steps: int, *, keep: tuple[int, ...]) -> WrittenOut:
    """Train `run` from its seed; a step is two halves of its clips, whatever the run says of ranks and accumulation."""
    jepa, done = build(run), WrittenOut()
    target = copy.deepcopy(jepa.encoder)
    first = {name: torch.zeros_like(p) for name, p in jepa.named_parameters()}
    second = copy.deepcopy(first)
    for step in range(steps):
        total = 0.0
        for half in range(2):
            start = step * run.train.clips + half * run.train.clips // 2
            loss = _loss(jepa, target, run, step, range(start, start + run.train.clips // 2)) / 2
            loss.backward()
            total += loss.item()
        done.losses.append(total)
        done.norms.append(_clip(jepa, run, step))
        _adamw(jepa, first, second, run, taken=step + 1)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), jepa.encoder.parameters(), strict=True):
                slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)
        if step + 1 in keep:
            done.states[step + 1] = _state(jepa, target, first, second)
    return done


def _loss(jepa: Jepa, target: nn.Module, run: RunConfig, step: int, ids: range) -> Tensor:
    """Mean distance of predicted from hidden features, and mean over mask types."""
    clips = made_clips(run, ids)
    views, splits = to_views(clips, run, device="cpu"), splits_for(run, step=step, specs=clips.specs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=run.train.precision == "bf16"):
        with torch.no_grad():
            levels = target(*target.tokenise(views))
        terms = jepa(views, splits, levels).terms
    truth = F.layer_norm(levels[-1].float(), (run.model.width,), eps=1e-5)
    losses = []
    for term, split in zip(terms, splits, strict=True):
        hidden = torch.stack([clip[ids] for clip, ids in zip(truth, split.target, strict=True)])
        losses.append((term.prediction.float() - hidden).abs().mean())
    return sum(losses, torch.zeros(())) / len(losses)


def _clip(jepa: Jepa, run: RunConfig, step: int) -> float:
    """Norm of all gradients, before those of each part are brought down to the limit."""
    optim, norms = run.optim, []
    for part in (jepa.encoder, jepa.predictor) if optim.clip_parts == "separate" else (jepa,):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(float(g.square().sum(dtype=torch.float64)) for g in gradients)))
        if optim.clip is not None and step >= optim.clip_from_step and norms[-1] > optim.clip:
            for gradient in gradients:
                gradient.mul_(optim.clip / (norms[-1] + 1e-6))
    return math.hypot(*norms)


@torch.no_grad()
def _adamw(jepa: Jepa, first: dict[str, Tensor], second: dict[str, Tensor], run: RunConfig, *, taken: int) -> None:
    """Decoupled weight decay, two moments, both corrected for their start at 0."""
    beta, gamma = run.optim.betas
    for name, p in jepa.named_parameters():
        assert p.grad is not None
        if p.ndim > 1:
            p.mul_(1 - LR * DECAY)
        first[name].mul_(beta).add_(p.grad, alpha=1 - beta)
        second[name].mul_(gamma).addcmul_(p.grad, p.grad, value=1 - gamma)
        spread = (second[name] / (1 - gamma**taken)).sqrt() + run.optim.eps
        p.sub_(LR * (first[name] / (1 - beta**taken)) / spread)
        p.grad = None


def _state(jepa: Jepa, target: nn.Module, first: dict[str, Tensor], second: dict[str, Tensor]) -> State:
    parts = {
        "master": dict(jepa.named_parameters()),
        "target": dict(target.named_parameters()),
        "exp_avg": first,
        "exp_avg_sq": second,
    }
    return {(kind, name): t.detach().flatten().clone() for kind, named in parts.items() for name, t in named.items()}

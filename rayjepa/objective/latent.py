"""The distance of predictions from their targets.

Every value here is a mean over this process's clips, so that the mean over ranks of equal batches is the value on all
of them, and the engine's averaging of gradients is all the communication that these losses need.
"""

from dataclasses import dataclass
from typing import assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rayjepa.config import ObjectiveConfig
from rayjepa.model import Prediction, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What is minimised, and what is reported; metrics are detached and stay on the device."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]


def energy(
    prediction: Float[Tensor, "B M D"], target: Float[Tensor, "B M D"], cfg: ObjectiveConfig
) -> Float[Tensor, "B M"]:
    """Distance of each hidden token from its target in float32, mean over features; reduced by the caller.

    Source:  V-JEPA (arXiv:2404.08471): |prediction - target|^p / p, with p = 1 in all its recipes; "l2" is p = 2.
             "smooth_l1" is I-JEPA's (arXiv:2301.08243): l2 below a difference of 1 and l1 - 1/2 above.
    """
    prediction, target = prediction.float(), target.float()
    match cfg.kind:
        case "l1":
            return (prediction - target).abs().mean(-1)
        case "l2":
            return (prediction - target).square().mean(-1) / 2
        case "smooth_l1":
            return F.smooth_l1_loss(prediction, target, reduction="none").mean(-1)
        case _ as unreachable:
            assert_never(unreachable)


def score(prediction: Prediction, cfg: ObjectiveConfig) -> Scores:
    """Mean energy of each term, tokens weighted where the term says so, and the plain mean over terms."""
    losses = {term.name: _mean(energy(term.prediction, term.target, cfg), term.weight) for term in prediction.terms}
    loss = torch.stack(list(losses.values())).mean()
    metrics = {"loss/latent": loss.detach()}
    metrics |= {f"loss/{name}": value.detach() for name, value in losses.items()}
    metrics["collapse/prediction_std"] = torch.stack([_spread(term) for term in prediction.terms]).mean()
    return Scores(loss=loss, metrics=metrics)


def _mean(tokens: Float[Tensor, "B M"], weight: Float[Tensor, "B M"] | None) -> Float[Tensor, ""]:
    return tokens.mean() if weight is None else (tokens * weight).sum() / weight.sum()


def _spread(term: Term) -> Float[Tensor, ""]:
    """Standard deviation of each feature over the predicted tokens, mean over features: 0 once all are the same."""
    return term.prediction.detach().float().flatten(0, 1).std(dim=0, correction=0).mean()

"""Linear probes of frozen features: what a straight line can read out of them, on videos that no fit has seen.

Ridge regression in closed form, so that equal features give equal figures on any day; its strength is chosen on a
validation part, never on the test part, and every video is in one part only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

SHARES = (0.6, 0.2, 0.2)
"""Of the videos: to fit, to choose the strength, to test."""
STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-10, 5))
"""Of ridge, over the number of fitted clips: from next to nothing to features of unit variance shrunk a hundredfold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Rows of the features by what they are for."""

    fit: Int64[Tensor, " f"]
    choose: Int64[Tensor, " c"]
    test: Int64[Tensor, " t"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one probe came to."""

    score: float
    """On the test part: R² (mean over the labels) or accuracy, at most 1."""
    chance: float
    """The same of a probe that sees no features: 0 for R², the commonest fitted class for accuracy."""
    strength: float
    """Ridge strength that was best on the part to choose."""
    clips: int
    """Clips in the test part."""


def parts_by_video(videos: Sequence[int], *, seed: int = 0) -> Parts:
    """Rows dealt by their video, so that no video is in two parts: a function of the set of videos and `seed`.

    Raises:  ValueError if they are too few for three parts.
    """
    ids = torch.tensor(sorted(set(videos)))
    first, second = round(SHARES[0] * len(ids)), round((SHARES[0] + SHARES[1]) * len(ids))
    if not 0 < first < second < len(ids):
        raise ValueError(f"{len(ids)} held-out video(s) do not make three parts for probes; raise data.holdout")
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    rows = torch.tensor(list(videos))
    fit, choose, test = (torch.isin(rows, part).nonzero().flatten() for part in ids.tensor_split([first, second]))
    return Parts(fit=fit, choose=choose, test=test)


def regress(features: Float[Tensor, "n D"], labels: Float[Tensor, "n K"], parts: Parts) -> Probe:
    """R² of the labels, mean over the K of them; 0 is what their mean would get, below 0 is worse than that."""
    truth = labels.double().cpu()

    def score(guess: Float64[Tensor, "m K"], rows: Int64[Tensor, " m"]) -> float:
        left = (truth[rows] - guess).square().sum(dim=0)
        return float((1 - left / (truth[rows] - truth[rows].mean(dim=0)).square().sum(dim=0)).mean())

    guesses = _ridge(features, truth, parts.fit)
    chosen = max(range(len(STRENGTHS)), key=lambda k: score(guesses[k, parts.choose], parts.choose))
    return Probe(
        score=score(guesses[chosen, parts.test], parts.test),
        chance=0.0,
        strength=STRENGTHS[chosen],
        clips=len(parts.test),
    )


def classify(features: Float[Tensor, "n D"], classes: Int64[Tensor, " n"], parts: Parts) -> Probe:
    """Accuracy of the class whose indicator ridge regression puts highest."""
    truth = classes.cpu()

    def score(guess: Float64[Tensor, "m C"], rows: Int64[Tensor, " m"]) -> float:
        return float((guess.argmax(dim=-1) == truth[rows]).double().mean())

    indicators = torch.nn.functional.one_hot(truth).double()
    guesses = _ridge(features, indicators, parts.fit)
    chosen = max(range(len(STRENGTHS)), key=lambda k: score(guesses[k, parts.choose], parts.choose))
    commonest = truth[parts.fit].bincount().argmax()
    return Probe(
        score=score(guesses[chosen, parts.test], parts.test),
        chance=float((truth[parts.test] == commonest).double().mean()),
        strength=STRENGTHS[chosen],
        clips=len(parts.test),
    )


def _ridge(
    features: Float[Tensor, "n D"], labels: Float64[Tensor, "n K"], fit: Int64[Tensor, " f"]
) -> Float64[Tensor, "S n K"]:
    """Guesses for all rows at each of `STRENGTHS`, from the rows `fit` alone; the mean is not shrunk.

    Features are scaled to unit variance over `fit`; one that does not vary there takes no part. In float64 by one
    singular value decomposition, which no collinearity upsets.
    """
    x = features.detach().double().cpu()
    mean, spread = x[fit].mean(dim=0), x[fit].std(dim=0, correction=0)
    varies = spread > 1e-9 * spread.max().clamp(min=1e-300)
    x = torch.where(varies, (x - mean) / torch.where(varies, spread, 1.0), 0.0)
    left, values, right = (torch.as_tensor(part) for part in np.linalg.svd(x[fit].numpy(), full_matrices=False))
    centre = labels[fit].mean(dim=0)
    along = left.mT @ (labels[fit] - centre)
    shrunk = torch.stack([values / (values.square() + strength * len(fit)) for strength in STRENGTHS])
    return x @ (right.mT @ (shrunk[:, :, None] * along)) + centre

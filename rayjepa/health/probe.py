"""Linear probes of frozen features: what a straight line can read out of them, on videos that no fit has seen.

Ridge regression in closed form, so that equal features give equal figures on any day; its strength is chosen on a
validation part, never on the test part, and every video is in one part only.
"""

from collections.abc import Callable, Sequence
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


class Probes:
    """Linear probes of the same features, for any number of labels.

    Features are scaled to unit variance over the part to fit; one that does not vary there takes no part. In float64,
    by one singular value decomposition, which no collinearity upsets.
    """

    def __init__(self, features: Float[Tensor, "n D"], parts: Parts) -> None:
        self.parts = parts
        x = features.detach().double().cpu()
        mean, spread = x[parts.fit].mean(dim=0), x[parts.fit].std(dim=0, correction=0)
        varies = spread > 1e-9 * spread.max().clamp(min=1e-300)
        self._x = torch.where(varies, (x - mean) / torch.where(varies, spread, 1.0), 0.0)
        found = np.linalg.svd(self._x[parts.fit].numpy(), full_matrices=False)
        self._left, self._values, self._right = (torch.as_tensor(part) for part in found)

    def regress(self, labels: Float[Tensor, "n K"]) -> Probe:
        """R² of the labels, mean over the K of them; 0 is what their mean would get, below 0 is worse than that."""
        truth = labels.double().cpu()

        def score(guess: Float64[Tensor, "m K"], rows: Int64[Tensor, " m"]) -> float:
            left = (truth[rows] - guess).square().sum(dim=0)
            return float((1 - left / (truth[rows] - truth[rows].mean(dim=0)).square().sum(dim=0)).mean())

        return self._best(truth, score, chance=0.0)

    def classify(self, classes: Int64[Tensor, " n"]) -> Probe:
        """Accuracy of the class whose indicator ridge regression puts highest."""
        truth = classes.cpu()

        def score(guess: Float64[Tensor, "m C"], rows: Int64[Tensor, " m"]) -> float:
            return float((guess.argmax(dim=-1) == truth[rows]).double().mean())

        commonest = truth[self.parts.fit].bincount().argmax()
        chance = float((truth[self.parts.test] == commonest).double().mean())
        return self._best(torch.nn.functional.one_hot(truth).double(), score, chance=chance)

    def _best(
        self, labels: Float64[Tensor, "n K"], score: Callable[[Tensor, Tensor], float], *, chance: float
    ) -> Probe:
        """The probe of the strength that is best on the part to choose, scored on the part to test."""
        fit, choose, test = self.parts.fit, self.parts.choose, self.parts.test
        centre = labels[fit].mean(dim=0)
        along = self._left.mT @ (labels[fit] - centre)

        def guess(strength: float, rows: Int64[Tensor, " m"]) -> Float64[Tensor, "m K"]:
            shrunk = self._values / (self._values.square() + strength * len(fit))  # the mean is not shrunk
            return self._x[rows] @ (self._right.mT @ (shrunk[:, None] * along)) + centre

        strength = max(STRENGTHS, key=lambda s: score(guess(s, choose), choose))
        return Probe(score=score(guess(strength, test), test), chance=chance, strength=strength, clips=len(test))

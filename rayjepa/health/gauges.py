"""Numbers that tell a collapsed representation from a healthy one; the loss does not."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-7
"""Added to every singular value's share (RankMe)."""


def rankme(features: Float[Tensor, "n D"]) -> float:
    """Effective rank of `features`: about 1 if all clips look the same, at most `ceiling`.

    In float64 on the CPU. 0 for features that are all 0; NaN if any is not finite.
    Source:  RankMe (arXiv:2210.02885), equations 1 and 2: exp of the entropy of the singular values' shares. Features
             are not centred, so that a constant vector common to all clips counts as one direction.
    """
    matrix = features.detach().double().cpu()
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values / total + EPS
    return math.exp(-float((shares * np.log(shares)).sum()))


def ceiling(clips: int, width: int) -> int:
    """Highest rank that `clips` features of `width` channels can have."""
    return min(clips, width)


def feature_std(features: Float[Tensor, "n D"]) -> Float[Tensor, " D"]:
    """Standard deviation of each channel over clips (over n, not n - 1)."""
    return features.detach().float().std(dim=0, correction=0)


def examine(features: Float[Tensor, "n D"]) -> dict[str, float]:
    """The gauges of one examination, by metric name; the same of a random encoder is their floor."""
    spread = feature_std(features)
    return {
        "collapse/rankme": rankme(features),
        "collapse/rankme_ceiling": float(ceiling(*features.shape)),
        "collapse/std_mean": float(spread.mean()),
        "collapse/std_min": float(spread.min()),
    }

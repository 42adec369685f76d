"""Whether the representation is alive: its rank and spread on held-out clips, beside a floor and a ceiling."""

from rayjepa.health.features import clip_features, gathered, grid_features, most_passes, random_target, share
from rayjepa.health.gauges import ceiling, examine, feature_std, rankme

__all__ = [
    "ceiling",
    "clip_features",
    "examine",
    "feature_std",
    "gathered",
    "grid_features",
    "most_passes",
    "random_target",
    "rankme",
    "share",
]

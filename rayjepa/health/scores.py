"""The gauges that a model may be chosen by: taken on held-out clips, each with what it has to be read beside."""

import difflib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number of the health lines, and the names of its floor (a random encoder's) and ceiling, if it has them."""

    name: str
    mode: Literal["max", "min"]
    """Whether higher or lower is further from a collapse."""
    floor: str | None
    ceiling: str | None
    caution: str
    """What the number alone does not say."""


SCORES = {
    score.name: score
    for score in (
        Score(
            name="collapse/rankme",
            mode="max",
            floor="collapse/rankme_floor",
            ceiling="collapse/rankme_ceiling",
            caution="higher is better, but a target that has hardly moved keeps its random encoder's rank (the floor): "
            "a score near the floor may be an encoder that has not learned",
        ),
        Score(
            name="collapse/std_mean",
            mode="max",
            floor="collapse/std_floor",
            ceiling=None,
            caution="it falls to 0 in a collapse; above the floor, a wider spread is not by itself a better encoder",
        ),
        Score(
            name="collapse/std_min",
            mode="max",
            floor=None,
            ceiling=None,
            caution="it is 0 as soon as one channel is dead; it says nothing of the others",
        ),
    )
}
"""By name."""


def score_of(metric: str) -> Score:
    """The score of that name.

    Raises:  ValueError if models must not be chosen by this metric, or if health reports none of this name.
    """
    if metric in SCORES:
        return SCORES[metric]
    allowed = ", ".join(SCORES)
    if metric.startswith("loss/") or metric in ("loss", "train_loss"):
        raise ValueError(
            f"metric={metric}: a train loss cannot choose a model. The target moves with the encoder, so a collapsing "
            f"run has the lowest loss of all; allowed, on held-out clips: {allowed}"
        )
    near = difflib.get_close_matches(metric, SCORES, n=1, cutoff=0.4)
    hint = f"; nearest: {near[0]}" if near else ""
    raise ValueError(f"metric={metric} is no held-out health metric; allowed: {allowed}{hint}")

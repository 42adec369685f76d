"""Which charts the page has, made from the run's lines."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rayjepa.report.axes import Numbers
from rayjepa.report.digest import Digest
from rayjepa.report.plot import Chart, Curve, Level
from rayjepa.report.verdict import value

Lines = Sequence[Mapping[str, Any]]
Tries = tuple[Lines, Lines]
"""Surviving lines and undone ones."""

STYLES: tuple[Literal["first", "second", "third"], ...] = ("first", "second", "third")


def charts(digest: Digest) -> list[Chart]:
    """The page's charts in reading order: representation, optimisation, speed."""
    steps: Tries = (digest.steps, digest.table.of("step", undone=True))
    health: Tries = (digest.health, digest.table.of("health", undone=True))
    starts = [(a.attempt, a.start) for a in digest.table.attempts.values()]
    ends = [line["step"] for lines in (*steps, *health) for line in lines]
    shared: dict[str, Any] = {
        "last_step": float(max([1, *ends, *(start for _, start in starts)])),
        "restarts": tuple((attempt, start) for attempt, start in starts if attempt > 1),
        "undone": tuple(
            (end := life.record.start + life.kept, end + life.undone) for life in digest.lives if life.undone
        ),
    }
    return [*_representation(health, shared), *_optimisation(steps, shared), *_speed(steps, shared)]


def series(lines: Lines, key: str) -> tuple[Numbers, Numbers]:
    """Steps and values of `key` in the lines that have it, in order of steps."""
    having = sorted((line for line in lines if key in line), key=lambda line: line["step"])
    return np.array([line["step"] for line in having], dtype=float), np.array([value(line, key) for line in having])


def _representation(health: Tries, shared: dict[str, Any]) -> list[Chart]:
    return [
        Chart(
            key="rankme",
            title="RankMe",
            unit="effective rank of the target's features",
            curves=_curves(health, {"collapse/rankme": "RankMe"}),
            levels=_levels(health[0], "collapse/rankme"),
            note="Near the floor: no better than a random encoder. Near 1: collapsed.",
            is_from_zero=True,
            has_log=True,
            log_first=True,
            **shared,
        ),
        Chart(
            key="std",
            title="Feature std",
            unit="over clips, per channel",
            curves=_curves(health, {"collapse/std_mean": "mean", "collapse/std_min": "lowest"}),
            levels=_levels(health[0], "collapse/std"),
            note="Falling towards 0: the features no longer tell clips apart.",
            is_from_zero=True,
            has_log=True,
            **shared,
        ),
    ]


def _optimisation(steps: Tries, shared: dict[str, Any]) -> list[Chart]:
    return [
        Chart(
            key="loss",
            title="Loss",
            curves=_curves(steps, _loss_names(steps[0]), is_smoothed=True),
            note="Not a progress signal: the target moves with the encoder, so the loss may rise while features "
            "improve, and fall as they collapse.",
            has_log=True,
            **shared,
        ),
        Chart(
            key="grad_norm",
            title="Gradient norm",
            curves=_curves(steps, _norm_names(steps[0]), is_smoothed=True),
            is_from_zero=True,
            has_log=True,
            **shared,
        ),
        Chart(
            key="lr",
            title="Learning rate",
            curves=_curves(steps, {"optim/lr": "rate"}),
            is_from_zero=True,
            **shared,
        ),
        Chart(
            key="momentum",
            title="Target momentum",
            unit="share of the target kept at each step",
            curves=_curves(steps, {"ema/momentum": "momentum"}),
            digits=6,  # 0.9990 and 0.9999 are far apart
            **shared,
        ),
    ]


def _speed(steps: Tries, shared: dict[str, Any]) -> list[Chart]:
    kept, undone = steps
    return [
        Chart(
            key="rate",
            title="Throughput",
            unit="clips/s, all workers",
            curves=_curves(steps, {"rate/clips_per_s": "clips/s"}, is_smoothed=True),
            is_from_zero=True,
            **shared,
        ),
        Chart(
            key="wait",
            title="Waiting for data",
            unit="% of the step's time",
            curves=_curves((_waits(kept), _waits(undone)), {"wait": "% waiting"}, is_smoothed=True),
            note="What stays high here is time that faster decoding would give back.",
            is_from_zero=True,
            **shared,
        ),
    ]


def _curves(tries: Tries, names: Mapping[str, str], *, is_smoothed: bool = False) -> tuple[Curve, ...]:
    """A curve per name over the surviving lines, and grey ones for what each attempt did in vain."""
    kept, undone = tries
    curves: list[Curve] = []
    for style, (key, label) in zip(STYLES, names.items(), strict=False):
        x, y = series(kept, key)
        curves.append(Curve(label=label, x=x, y=y, style=style, is_smoothed=is_smoothed))
    for attempt in sorted({line["attempt"] for line in undone}):
        own = [line for line in undone if line["attempt"] == attempt]
        for key in names:
            x, y = series(own, key)
            curves.append(Curve(x=x, y=y, style="undone"))
    return tuple(curves)


def _loss_names(lines: Lines) -> dict[str, str]:
    """The mean over terms first, then single terms where there are several."""
    terms = sorted({key for line in lines for key in line if key.startswith("loss/")} - {"loss/latent"})
    shown = ["loss/latent", *(terms[: len(STYLES) - 1] if len(terms) > 1 else [])]
    return {key: key.removeprefix("loss/").replace("_", " ") for key in shown}


def _norm_names(lines: Lines) -> dict[str, str]:
    """The norm, with the highest of each reading where readings are of more than one step."""
    has_highest = any(value(line, "optim/grad_norm_max") > value(line, "optim/grad_norm") for line in lines)
    highest = {"optim/grad_norm_max": "highest of a reading"} if has_highest else {}
    return {"optim/grad_norm": "norm", **highest}


def _levels(health: Lines, prefix: str) -> tuple[Level, ...]:
    """Floor and ceiling as the last examination recorded them."""
    last = health[-1] if health else {}
    levels = (
        Level(label="random encoder", y=value(last, f"{prefix}_floor"), style="floor"),
        Level(label="ceiling", y=value(last, f"{prefix}_ceiling"), style="ceiling"),
    )
    return tuple(level for level in levels if np.isfinite(level.y))


def _waits(lines: Lines) -> list[dict[str, Any]]:
    """Per cent of each step line's time that went into waiting for clips."""
    return [
        {"step": line["step"], "attempt": line["attempt"], "wait": 100 * min(value(line, "data/wait_ms") / took, 1.0)}
        for line in lines
        if (took := value(line, "time/step_ms")) > 0
    ]

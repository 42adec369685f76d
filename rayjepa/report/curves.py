"""Which charts the page has, made from the run's lines."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rayjepa.config import Phase
from rayjepa.config.parts import MAIN
from rayjepa.report.axes import Numbers
from rayjepa.report.digest import Digest
from rayjepa.report.phases import planned
from rayjepa.report.plot import Chart, Curve, Level
from rayjepa.report.verdict import value

Lines = Sequence[Mapping[str, Any]]
Tries = tuple[Lines, Lines]
"""Surviving lines and undone ones."""

Spans = Mapping[str, tuple[int, int]]
"""First and last step of each phase, by name; empty for a run of one."""

LEVELS: tuple[tuple[str, Literal["floor", "ceiling"]], ...] = (("random encoder", "floor"), ("ceiling", "ceiling"))
STYLES: tuple[Literal["first", "second", "third"], ...] = ("first", "second", "third")


def charts(digest: Digest, phases: Sequence[Phase] = ()) -> list[Chart]:
    """The page's charts in reading order: representation, optimisation, speed."""
    steps: Tries = (digest.steps, digest.table.of("step", undone=True))
    health: Tries = (digest.health, digest.table.of("health", undone=True))
    starts = {a.attempt: a.start for a in digest.table.attempts.values()}
    ends = [line["step"] for lines in (*steps, *health) for line in lines]
    last = max([1, *ends, *starts.values()])
    shared: dict[str, Any] = {
        "last_step": float(last),
        "restarts": tuple((a, start) for a, start in starts.items() if a > 1 and a not in planned(phases, starts)),
        "phases": tuple((phase.name, phase.first) for phase in phases[1:] if phase.first <= last),
        "undone": tuple(
            (end := life.record.start + life.kept, end + life.undone) for life in digest.lives if life.undone
        ),
    }
    spans = {phase.name: (phase.first, min(phase.stop, last)) for phase in phases}
    return [*_representation(health, spans, shared), *_optimisation(steps, shared), *_speed(steps, shared)]


def series(lines: Lines, key: str) -> tuple[Numbers, Numbers]:
    """Steps and values of `key` in the lines that have it, in order of steps."""
    having = sorted((line for line in lines if key in line), key=lambda line: line["step"])
    return np.array([line["step"] for line in having], dtype=float), np.array([value(line, key) for line in having])


def _representation(health: Tries, spans: Spans, shared: dict[str, Any]) -> list[Chart]:
    apart = "Phases differ in their clips: a value compares with others of its phase alone." if spans else ""
    return [
        Chart(
            key="rankme",
            title="RankMe",
            unit="effective rank of the target's features",
            curves=_curves(health, {"collapse/rankme": "RankMe"}),
            levels=_levels(health[0], spans, "collapse/rankme"),
            note=f"Near the floor: no better than a random encoder. Near 1: collapsed. {apart}".strip(),
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
            levels=_levels(health[0], spans, "collapse/std"),
            note=f"Falling towards 0: the features no longer tell clips apart. {apart}".strip(),
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
    terms = [key for key in terms if key.endswith("_latent")] or terms  # of streams, each one's total
    shown = ["loss/latent", *(terms[: len(STYLES) - 1] if len(terms) > 1 else [])]
    return {key: key.removeprefix("loss/").replace("_", " ") for key in shown}


def _norm_names(lines: Lines) -> dict[str, str]:
    """The norm, with the highest of each reading where readings are of more than one step."""
    has_highest = any(value(line, "optim/grad_norm_max") > value(line, "optim/grad_norm") for line in lines)
    highest = {"optim/grad_norm_max": "highest of a reading"} if has_highest else {}
    return {"optim/grad_norm": "norm", **highest}


def _levels(health: Lines, spans: Spans, prefix: str) -> tuple[Level, ...]:
    """Floor and ceiling as the last examination of each phase recorded them; the legend has the newest."""
    newest = {line.get("phase", MAIN): line for line in health}
    levels: list[Level] = []
    for name, line in newest.items():
        is_newest = line is health[-1]
        for label, style in LEVELS:
            y = value(line, f"{prefix}_{style}")
            levels.append(Level(label=label if is_newest else "", y=y, style=style, span=spans.get(name)))
    return tuple(level for level in levels if np.isfinite(level.y))


def _waits(lines: Lines) -> list[dict[str, Any]]:
    """Per cent of each step line's time that went into waiting for clips."""
    return [
        {"step": line["step"], "attempt": line["attempt"], "wait": 100 * min(value(line, "data/wait_ms") / took, 1.0)}
        for line in lines
        if (took := value(line, "time/step_ms")) > 0
    ]

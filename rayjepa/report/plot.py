"""One figure of the page in HTML and SVG.

A plot is an SVG stretched to its box (lines keep their width) with labels in HTML around it, placed by per cent: the
letters keep their size from a telephone to a printed page, and nothing needs a script.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

import numpy as np

from rayjepa.report.axes import GRAIN, Axes, Numbers, Scale, axes_for, smooth, thin
from rayjepa.report.numbers import number, plural, short

LABEL_GAP = 4.0
"""Per cent of the width under which the labels of two restarts would lie on each other."""
LETTER = 1.5
"""Per cent of the width that a letter of a label takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line over steps; an undone one has no label, since the page explains all of them once."""

    label: str = ""
    x: Numbers
    y: Numbers
    style: Literal["first", "second", "third", "undone"]
    is_smoothed: bool = False
    """Draw the readings faintly and a running mean over them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A value to compare with: a broken line over the whole width, or over a `span` of steps."""

    label: str
    """Empty: not in the legend."""
    y: float
    style: Literal["floor", "ceiling"]
    span: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """What one figure shows."""

    key: str
    title: str
    unit: str = ""
    note: str = ""
    curves: tuple[Curve, ...]
    levels: tuple[Level, ...] = ()
    last_step: int | float
    """Right end of the step axis, the same in every chart of a page."""
    restarts: tuple[tuple[int, int], ...] = ()
    """(attempt, step it started at), for each attempt after the first."""
    phases: tuple[tuple[str, int], ...] = ()
    """(name, first step), for each phase after the first."""
    undone: tuple[tuple[int, int], ...] = ()
    """(first, past the last) step that a restart undid: shaded, since the lines of two tries may lie on each other."""
    has_log: bool = False
    """Offer a logarithmic axis."""
    log_first: bool = False
    """Begin with it."""
    is_from_zero: bool = False
    digits: int = 3
    """Significant digits of the values in the legend."""


def figure(chart: Chart) -> str:
    """The figure's HTML: title, legend with last values, plot on each scale, note."""
    curves = [_finite(c) for c in chart.curves]
    title = escape(chart.title) + (f" <small>{escape(chart.unit)}</small>" if chart.unit else "")
    if not any(len(c.x) for c in curves):
        return f'<figure class="chart empty"><h3>{title}</h3><p class="absent">No reading yet.</p></figure>'
    scales: list[Scale] = ["linear"]
    switch = ""
    if chart.has_log and any((c.y > 0).any() for c in curves):
        scales.append("log")
        name = f"log-{escape(chart.key)}"
        state = " checked" if chart.log_first else ""
        switch = f'<input type="checkbox" class="log-switch" id="{name}"{state}><label for="{name}">log scale</label>'
    panels = "".join(_panel(chart, curves, scale) for scale in scales)
    dropped = sum(len(a.x) - len(b.x) for a, b in zip(chart.curves, curves, strict=True))
    lost = f"{plural(dropped, 'reading')} not finite, so not drawn." if dropped else ""
    note = f'<p class="note">{escape(f"{chart.note} {lost}".strip())}</p>' if chart.note or lost else ""
    return (
        f'<figure class="chart" data-chart="{escape(chart.key)}">{switch}<h3>{title}</h3>{_legend(chart, curves)}'
        f'<div class="plot">{panels}<div class="cursor" hidden></div></div>{note}</figure>'
    )


def hover_data(chart: Chart) -> dict[str, object]:
    """What the page's script reads out under the pointer: steps and values of the curves that the legend names."""
    thinned = [thin(c.x, c.y) for c in map(_finite, chart.curves) if c.label and len(c.x)]
    return {
        "last": chart.last_step,
        "digits": chart.digits,
        "curves": [{"x": [int(v) for v in x], "y": [float(f"{v:.6g}") for v in y]} for x, y in thinned],
    }


def _finite(curve: Curve) -> Curve:
    good = np.isfinite(curve.x) & np.isfinite(curve.y)
    return replace(curve, x=curve.x[good], y=curve.y[good])


def _legend(chart: Chart, curves: Sequence[Curve]) -> str:
    """Names, keys and last values; the script puts the values under the pointer in their place."""
    named = [c for c in curves if c.label and len(c.x)]
    items = [
        f'<li data-curve><i class="key {c.style}"></i>{escape(c.label)} '
        f"<b>{number(float(c.y[-1]), digits=chart.digits)}</b></li>"
        for c in named
    ]
    items += [
        f'<li><i class="key {level.style}"></i>{escape(level.label)} <b>{number(level.y, digits=chart.digits)}</b></li>'
        for level in chart.levels
        if level.label
    ]
    last = max((int(c.x[-1]) for c in named), default=0)
    return f'<ul class="legend">{"".join(items)}<li class="at">step {last:,}</li></ul>'


def _panel(chart: Chart, curves: Sequence[Curve], scale: Scale) -> str:
    """The plot on one scale, its labels around it."""
    kept = [c.y for c in curves if c.style != "undone"] + [np.array([level.y for level in chart.levels])]
    undone = [c.y for c in curves if c.style == "undone"] + [np.array([])]
    axes = axes_for(
        kept=np.concatenate(kept),
        undone=np.concatenate(undone),
        last_step=chart.last_step,
        scale=scale,
        from_zero=chart.is_from_zero,
    )
    marks = [f'<path class="shade" d="M{axes.x(a)} 0H{axes.x(b)}V{GRAIN}H{axes.x(a)}Z"/>' for a, b in chart.undone]
    marks += [f'<path class="grid" d="M0 {axes.y(tick)}H{GRAIN}"/>' for tick in axes.ticks()]
    marks += [f'<path class="start" d="M{axes.x(step)} 0V{GRAIN}"/>' for _, step in chart.restarts]
    marks += [f'<path class="phase" d="M{axes.x(step)} 0V{GRAIN}"/>' for _, step in chart.phases]
    marks += [_level(level, axes) for level in chart.levels]
    marks += [_drawn(curve, axes) for curve in sorted(curves, key=lambda c: c.style != "undone")]
    about = escape(f"{chart.title} over steps", quote=True)
    return (
        f'<div class="panel {scale}"><svg viewBox="0 0 {GRAIN} {GRAIN}" preserveAspectRatio="none" role="img" '
        f'aria-label="{about}">{"".join(marks)}</svg>{_labels(chart, axes)}</div>'
    )


def _level(level: Level, axes: Axes) -> str:
    low, high = (0, GRAIN) if level.span is None else (axes.x(step) for step in level.span)
    return f'<path class="{level.style}" d="M{low} {axes.y(level.y)}H{high}"/>'


def _labels(chart: Chart, axes: Axes) -> str:
    """Values at the left, steps below, names of phases and numbers of attempts above."""
    labels = [
        f'<span class="y" style="top:{100 * axes.y(t) / GRAIN:.2f}%">{short(t, largest=axes.high)}</span>'
        for t in axes.ticks()
    ]
    labels += [
        f'<span class="x" style="left:{100 * axes.x(t) / GRAIN:.2f}%">{short(t, largest=axes.last_step)}</span>'
        for t in axes.step_ticks()
    ]
    names, taken = _phase_names(chart, axes)
    labels += names
    shown = -LABEL_GAP
    for attempt, step in chart.restarts:
        at = 100 * axes.x(step) / GRAIN
        if at - shown >= LABEL_GAP and not any(low - 1 <= at <= high for low, high in taken):
            shown = at
            tip = f"attempt {attempt} started at step {step:,}"
            labels.append(f'<span class="attempt" style="left:{at:.2f}%" title="{tip}">{attempt}</span>')
    return "".join(labels)


def _phase_names(chart: Chart, axes: Axes) -> tuple[list[str], list[tuple[float, float]]]:
    """Names of phases above their beginnings, cut off where the next one begins, and what they take of the width."""
    edges = [0.0, *(100 * axes.x(step) / GRAIN for _, step in chart.phases), 100.0]
    labels: list[str] = []
    taken: list[tuple[float, float]] = []
    for (name, step), before, at, after in zip(chart.phases, edges, edges[1:], edges[2:], strict=False):
        wide = LETTER * len(name)
        is_before = after == 100 and at + wide > 100  # the last may lie at the very end
        low, high = (max(before, at - wide), at) if is_before else (at, min(after, at + wide))
        taken.append((low, high))
        place = f"right:{100 - high:.2f}%" if is_before else f"left:{low:.2f}%"
        tip = f"{escape(name, quote=True)} begins at step {step:,}"
        style = f"{place};max-width:{after - at if not is_before else at - before:.2f}%"
        labels.append(f'<span class="name" style="{style}" title="{tip}">{escape(name)}</span>')
    return labels, taken


def _drawn(curve: Curve, axes: Axes) -> str:
    """Paths of one curve: the readings, with the running mean over them where that is asked and there are enough."""
    window = len(curve.x) // 40  # a mean over less than a fortieth of the width would still look like noise
    if not curve.is_smoothed or window < 3:
        return _path(curve.x, curve.y, curve.style, axes)
    x, y = thin(curve.x, smooth(curve.y, window=window), most=400)
    return _path(curve.x, curve.y, f"{curve.style} raw", axes) + _path(x, y, curve.style, axes)


def _path(x: Numbers, y: Numbers, style: str, axes: Axes) -> str:
    if axes.scale == "log":
        x, y = x[y > 0], y[y > 0]
    x, y = thin(x, y)
    points = [f"{axes.x(a)} {axes.y(b)}" for a, b in zip(x, y, strict=True)]
    if len(points) == 1:  # a line without length and with round ends is a dot
        return f'<path class="{style} dot" d="M{points[0]}h0"/>'
    return f'<path class="{style}" d="M{"L".join(points)}"/>' if points else ""

"""A study of learning as one picture: probes above, gauges and loss over steps below. SVG."""

import statistics
from collections.abc import Sequence
from html import escape

import numpy as np

from rayjepa.bench.learned import CLAIMED, LABELS, Row
from rayjepa.bench.learning import Kind, Trial
from rayjepa.report.axes import GRAIN, Axes, Scale, axes_for, thin
from rayjepa.report.numbers import number

WIDTH, MARGIN, GAP = 960, 56, 64
"""In the drawing's own units, of which a screen shows one per pixel."""
PROBES, PANEL = 240, 190
"""Heights of the plots."""
NAMES: dict[Kind, str] = {
    "jepa": "the run",
    "twin": "its twin: gradient through the target, no EMA",
    "random": "random weights",
}
COLOURS: dict[Kind, str] = {"jepa": "#0072b2", "twin": "#d55e00", "random": "#777777"}
"""Colours that the colour-blind can tell apart (Okabe and Ito)."""
GAUGES = {"collapse/rankme": "RankMe (log)", "collapse/std_mean": "Feature std (log)"}
Line = tuple[Kind, Sequence[tuple[int | float, int | float]]]
"""Steps and values of one trial."""


def svg(trials: Sequence[Trial], table: Sequence[Row]) -> str:
    """A document of its own; `trials` are a study's."""
    seeds = len({trial.seed for trial in trials})
    top = 84
    below = top + PROBES + 74
    height = below + PANEL + 40
    title = f"Linear probes of frozen features on held-out videos, {seeds} seed{'s' if seeds > 1 else ''}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{MARGIN}" y="28" font-size="15" font-weight="600">{title}</text>',
        *_legend(54),
        *_probes([row for row in table if row.pool == CLAIMED.get(row.label, "clip")], top),
    ]
    wide = (WIDTH - 2 * MARGIN - 2 * GAP + 20) / 3
    for place, (key, name) in enumerate(GAUGES.items()):
        lines: list[Line] = [(t.kind, [(h["step"], h[key]) for h in t.health]) for t in trials if t.health]
        floor = statistics.mean(points[0][1] for _, points in lines)
        parts += _panel(name, lines, floor, "log", left=MARGIN + place * (wide + GAP), top=below, width=wide)
    losses: list[Line] = [(t.kind, [(at["step"], at["loss/latent"]) for at in t.losses]) for t in trials if t.losses]
    parts += _panel("Loss", losses, None, "linear", left=MARGIN + 2 * (wide + GAP), top=below, width=wide)
    return "\n".join([*parts, "</svg>\n"])


def _legend(y: int) -> list[str]:
    parts: list[str] = []
    x = MARGIN
    for kind, name in NAMES.items():
        parts.append(f'<circle cx="{x + 5}" cy="{y - 4}" r="5" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 16}" y="{y}">{escape(name)}</text>')
        x += 44 + round(6.3 * len(name))
    parts.append(f'<path d="M{x} {y - 4}h18" stroke="#000" stroke-dasharray="2 3"/>')
    parts.append(f'<text x="{x + 24}" y="{y}">chance</text>')
    return parts


def _probes(table: Sequence[Row], top: int) -> list[str]:
    """A column for each label: a dot for each seed, a bar at the mean of each kind."""
    low = min(0.0, *(min(scores) for row in table for scores in row.scores.values()))
    axes = Axes(last_step=1.0, low=low - 0.05, high=1.05, scale="linear")

    def y(value: float) -> float:
        return round(top + PROBES * axes.y(value) / GRAIN, 1)

    parts: list[str] = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(f'<path d="M{MARGIN} {y(tick)}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y(tick) + 4}" text-anchor="end" fill="#555">{number(tick)}</text>')
    wide = (WIDTH - 2 * MARGIN) / len(LABELS)
    for place, row in enumerate(sorted(table, key=lambda row: LABELS.index(row.label))):
        left = MARGIN + wide * place
        parts.append(
            f'<path d="M{left + 0.12 * wide:.1f} {y(row.chance)}h{0.76 * wide:.1f}" stroke="#000" '
            'stroke-dasharray="2 3"/>'
        )
        for slot, kind in enumerate(NAMES):
            x, scores = left + wide * (0.25 + 0.25 * slot), row.scores[kind]
            mean = statistics.mean(scores)
            about = escape(f"{NAMES[kind]}: {row.label} {row.measure} {mean:.3f}")
            parts.append(f'<g fill="{COLOURS[kind]}"><title>{about}</title>')
            parts.append(f'<rect x="{x - 18:.1f}" y="{y(mean) - 1.5}" width="36" height="3"/>')
            parts += [
                f'<circle cx="{x + 8 * (k - (len(scores) - 1) / 2):.1f}" cy="{y(score)}" r="4" fill-opacity="0.6"/>'
                for k, score in enumerate(scores)
            ]
            parts.append(
                f'<text x="{x:.1f}" y="{y(max(scores)) - 9}" text-anchor="middle">{round(mean, 2) + 0.0:.2f}</text></g>'
            )
        weight = ' font-weight="600"' if row.label in CLAIMED else ""
        parts.append(
            f'<text x="{left + wide / 2:.1f}" y="{top + PROBES + 20}" text-anchor="middle"{weight}>'
            f"{row.label}, {row.measure}</text>"
        )
    return parts


def _panel(
    name: str,
    lines: Sequence[Line],
    floor: float | None,
    scale: Scale,
    *,
    left: float,
    top: int,
    width: float,
) -> list[str]:
    """One quantity over steps, a line for each trial; `floor` is a dotted line across."""
    values = np.array([value for _, points in lines for _, value in points] + ([floor] if floor else []))
    last = max(step for _, points in lines for step, _ in points)
    axes = axes_for(kept=values, undone=np.array([]), last_step=last, scale=scale, from_zero=scale == "linear")

    def at(step: int | float, value: int | float) -> str:
        return f"{left + width * axes.x(step) / GRAIN:.1f} {top + PANEL * axes.y(value) / GRAIN:.1f}"

    parts = [f'<text x="{left:.1f}" y="{top - 12}" font-weight="600">{escape(name)}</text>']
    for tick in axes.ticks():
        x, y = at(0, tick).split()
        parts.append(f'<path d="M{x} {y}h{width:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{float(y) + 4}" text-anchor="end" fill="#555">{number(tick)}</text>')
    for tick in axes.step_ticks():
        x = at(tick, axes.high).split()[0]
        parts.append(f'<text x="{x}" y="{top + PANEL + 18}" text-anchor="middle" fill="#555">{tick:,}</text>')
    if floor is not None:
        parts.append(f'<path d="M{at(0, floor)}h{width:.1f}" stroke="{COLOURS["random"]}" stroke-dasharray="5 4"/>')
    for kind, points in lines:
        steps, heights = thin(np.array([p[0] for p in points], float), np.array([p[1] for p in points], float))
        path = "L".join(at(step, value) for step, value in zip(steps.tolist(), heights.tolist(), strict=True))
        parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[kind]}" stroke-width="1.6"/>')
    return parts

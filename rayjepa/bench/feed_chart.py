"""What `bench feed` found as one picture: ratios and waits above, growth and ceiling below. SVG."""

import math
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from rayjepa.bench.feed import DEMANDS, Ceiling, Measured, Point
from rayjepa.bench.feed_text import MOST_WAIT, TARGET
from rayjepa.report.axes import log_ticks, nice_ticks
from rayjepa.report.numbers import number, short

WIDTH, MARGIN, GAP = 960, 24, 40
"""In the drawing's own units, of which a screen shows one per pixel."""
LABEL, ROW, HEAD, PANEL = 152, 30, 40, 150
LEAST_WAIT = 1e-4
"""Shares below it are drawn there: a logarithmic axis has no zero."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Colours that the colour-blind can tell apart (Okabe and Ito)."""
Strip = tuple[str, Sequence[float]]
"""Name and values of a row of dots, or of a line."""


class Place(NamedTuple):
    """Where a panel lies."""

    left: float
    top: int
    width: float


def svg(measured: Measured) -> str:
    """A document of its own, on a ground of its own; parts that were not measured have no panel."""
    parts: list[str] = []
    top, half = 52, (WIDTH - 2 * MARGIN - GAP) / 2
    if measured.rounds or measured.slow:
        height = _strips(parts, measured, top, half)
        top += HEAD + height + GAP + 8
    if measured.growth:
        wide = (WIDTH - 2 * MARGIN - 3 * GAP) / 4
        for place, (name, points) in enumerate(measured.growth.items()):
            _growth(parts, name, points, Place(MARGIN + place * (wide + GAP), top, wide))
        top += HEAD + PANEL + GAP
    if measured.ceiling:
        _ceiling(parts, measured.ceiling, top, half)
        top += HEAD + PANEL + GAP
    loads = ", ".join(f"{part} {a:.1f} to {b:.1f}" for part, (a, b) in measured.loads.items())
    said = f"{measured.decoders} decoder(s), {measured.workers} trainer(s), {measured.cores} cores; load: {loads}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
            'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
            f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>',
            f'<text x="{MARGIN}" y="26" font-size="15" font-weight="600">How clips come to trainers</text>',
            f'<text x="{MARGIN}" y="44" fill="#555">{escape(said)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _strips(parts: list[str], measured: Measured, top: int, half: float) -> int:
    """Ratios at the left, waits at the right; return their height."""
    waits: list[Strip] = []
    if measured.rounds:
        ratios: list[Strip] = [
            ("decoders alone", [r.stream.clips_per_s / r.alone.clips_per_s for r in measured.rounds]),
            ("DataLoader", [r.stream.clips_per_s / r.loader.clips_per_s for r in measured.rounds]),
        ]
        values = [value for _, row in ratios for value in row]
        span = min(0.8, *values) - 0.02, max(1.1, *values) + 0.02
        title = "Stream's clips/s over those of others (dashed: target)"
        _dots(parts, title, ratios, (*span, TARGET), Place(MARGIN, top, half), say="{:.3g}".format)
        waits = [(f"capacity {f:g} x demand", [r.waits[f].share for r in measured.rounds]) for f in DEMANDS]
    if measured.slow:
        waits.append((f"slow, {measured.prefetch} ahead", [r.as_set.share for r in measured.slow]))
        waits.append(("slow, 2 ahead", [r.off.share for r in measured.slow]))

    def logged(value: float) -> float:
        return math.log10(max(value, LEAST_WAIT))

    def say(value: float) -> str:
        return f"{100 * value:.3g} %"

    title = "Share of time that sleeping trainers wait (dashed: target at 1.2)"
    at = Place(MARGIN + half + GAP, top, half)
    _dots(parts, title, waits, (LEAST_WAIT / 1.3, 1.0, MOST_WAIT), at, say=say, scale=logged)
    return ROW * max(len(waits), 2)


def _dots(
    parts: list[str],
    title: str,
    rows: Sequence[Strip],
    span: tuple[float, float, float],
    at: Place,
    *,
    say: Callable[[float], str],
    scale: Callable[[float], float] | None = None,
) -> None:
    """A row of dots for each name and a bar at its median; `span` is lowest, highest, and the place of a broken line.

    A `scale` is a logarithm.
    """
    *ends, mark = span
    left, top, width = at
    place = scale or float
    low = math.log10(ends[0]) if scale else ends[0]
    high = math.log10(ends[1]) if scale else ends[1]

    def x(value: float) -> float:
        return round(left + LABEL + (width - LABEL - 12) * (place(value) - low) / (high - low), 1)

    first, last = top + HEAD, top + HEAD + ROW * len(rows)
    parts.append(f'<text x="{left:.0f}" y="{top + 14}" font-weight="600">{escape(title)}</text>')
    for tick in log_ticks(*ends) if scale else nice_ticks(*ends):
        parts.append(f'<path d="M{x(tick)} {first}V{last}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick)}" y="{last + 16}" text-anchor="middle" fill="#555">{say(tick)}</text>')
    parts.append(f'<path d="M{x(mark)} {first - 6}V{last}" stroke="#222" stroke-dasharray="4 3"/>')
    for k, (name, values) in enumerate(rows):
        y, median = first + ROW * k + ROW // 2, statistics.median(values)
        parts.append(f'<text x="{left + LABEL - 12:.0f}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<g fill="{COLOURS[0]}"><title>{escape(f"{name}: median {say(median)}")}</title>')
        parts += [f'<circle cx="{x(value)}" cy="{y}" r="4" fill-opacity="0.45"/>' for value in values]
        parts.append(f'<rect x="{x(median) - 1.5}" y="{y - 10}" width="3" height="20"/></g>')


def _growth(parts: list[str], name: str, points: Sequence[Point], at: Place) -> None:
    series: list[Strip] = [("stream", [point.stream for point in points])]
    alone = [point.alone for point in points if point.alone is not None]
    if len(alone) == len(points):
        series.append(("decoders alone", alone))
    labels = [short(point.at, largest=point.at).replace(",000", "k") for point in points]
    _steps(parts, f"Clips/s by {name}", labels, series, at)


def _ceiling(parts: list[str], found: Sequence[Ceiling], top: int, half: float) -> None:
    """Blocks at the left, the clips in them at the right."""
    labels = [str(n) for n in sorted({c.trainers for c in found})]
    blocks: list[Strip] = []
    clips: list[Strip] = []
    for block in sorted({c.block for c in found}):
        own = [c for c in found if c.block == block]
        blocks.append((f"{block} in a block", [c.blocks_per_s for c in own]))
        clips.append((f"{block} in a block", [c.clips_per_s for c in own]))
    _steps(parts, "Ceiling: blocks/s by null trainers", labels, blocks, Place(MARGIN, top, half))
    _steps(parts, "The same in clips/s", labels, clips, Place(MARGIN + half + GAP, top, half))


def _steps(
    parts: list[str],
    title: str,
    labels: Sequence[str],
    series: Sequence[Strip],
    at: Place,
) -> None:
    """Lines over places at equal distances, from zero up."""
    left, top, width = at
    high = 1.08 * max(value for _, values in series for value in values)
    first, ground = top + HEAD, top + HEAD + PANEL - 24
    inset = 36

    def y(value: float) -> float:
        return round(ground - (ground - first) * value / high, 1)

    def x(place: int) -> float:
        room = (width - inset) / len(labels)
        return round(left + inset + room * (place + 0.5), 1)

    parts.append(f'<text x="{left:.0f}" y="{top + 14}" font-weight="600">{escape(title)}</text>')
    for tick in nice_ticks(0.0, high, most=4):
        parts.append(f'<path d="M{left + inset:.1f} {y(tick)}H{left + width:.1f}" stroke="#ddd"/>')
        label = short(tick, largest=high)
        parts.append(f'<text x="{left + inset - 6:.1f}" y="{y(tick) + 4}" text-anchor="end" fill="#555">{label}</text>')
    for place, label in enumerate(labels):
        parts.append(f'<text x="{x(place)}" y="{ground + 18}" text-anchor="middle" fill="#555">{escape(label)}</text>')
    key = left
    for (name, values), colour in zip(series, COLOURS, strict=False):
        line = "L".join(f"{x(k)} {y(value)}" for k, value in enumerate(values))
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for k, (label, value) in enumerate(zip(labels, values, strict=True)):
            tip = escape(f"{name}, {label}: {number(value)}")
            parts.append(f'<circle cx="{x(k)}" cy="{y(value)}" r="4" fill="{colour}"><title>{tip}</title></circle>')
        if len(series) > 1:
            parts.append(f'<circle cx="{key + 5:.1f}" cy="{top + 26}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{key + 14:.1f}" y="{top + 30}" fill="#555">{escape(name)}</text>')
        key += 34 + 6.2 * len(name)

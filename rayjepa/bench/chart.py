"""The contest as one picture: a row for each cell, a mark for each library, clips per CPU second along it. SVG."""

import math
from collections.abc import Sequence
from html import escape

from rayjepa.bench.ours import I420, RGB
from rayjepa.bench.report import Row
from rayjepa.report.axes import log_ticks
from rayjepa.report.numbers import number

WIDTH, LEFT, RIGHT, ROW = 960, 150, 30, 20
"""In the drawing's own units, of which a screen shows one per pixel."""
LIMIT = "FFmpeg alone, on as many frames as ours decodes"
OURS = "#0072b2"
PEERS = ("#999999", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#009e73", "#f0e442", "#000000")
"""Colours that the colour-blind can tell apart (Okabe and Ito)."""


def svg(table: Sequence[Row], peers: Sequence[str], *, frames: int) -> str:
    """A document of its own. `frames` are those of one clip; `table` is not empty."""
    limits = [1e3 / (row.decoded_per_used * frames * (row.ffmpeg_ms or row.bare_ms)) for row in table]
    values = [v for row in table for name, v in row.clips_per_cpu_s.items() if name in (I420, RGB, *peers)] + limits
    low, high = math.log10(min(values) / 1.15), math.log10(max(values) * 1.15)
    legend = [LIMIT, I420, RGB, *peers]
    top = 50 + 18 * -(-len(legend) // 2) + 24
    height = top + ROW * len(table) + 12

    def x(value: int | float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="12" y="24" font-size="15" font-weight="600">Clips per CPU second (further right is better)</text>',
        *_legend(legend, peers),
    ]
    for tick in log_ticks(10**low, 10**high):
        parts.append(f'<path d="M{x(tick)} {top - 6}V{height - 8}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick)}" y="{top - 10}" text-anchor="middle" fill="#555">{number(tick)}</text>')
    for k, (row, limit) in enumerate(zip(table, limits, strict=True)):
        y = top + ROW * k + ROW // 2
        shown = [(name, row.clips_per_cpu_s[name]) for name in (*peers, RGB, I420) if name in row.clips_per_cpu_s]
        reach = [x(value) for _, value in shown] + [x(limit)]
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.cell)}</text>')
        parts.append(f'<path d="M{min(reach)} {y}H{max(reach)}" stroke="#bbb"/>')
        parts.append(_mark(LIMIT, x(limit), y, peers))
        parts += [_mark(name, x(value), y, peers) for name, value in shown]
    return "\n".join([*parts, "</svg>\n"])


def _legend(names: Sequence[str], peers: Sequence[str]) -> list[str]:
    """In two columns, under the title."""
    half = -(-len(names) // 2)
    lines: list[str] = []
    for k, name in enumerate(names):
        at_x, at_y = 20 + 440 * (k // half), 48 + 18 * (k % half)
        lines += [_mark(name, at_x, at_y, peers), f'<text x="{at_x + 12}" y="{at_y + 4}">{escape(name)}</text>']
    return lines


def _mark(name: str, x: int | float, y: int | float, peers: Sequence[str]) -> str:
    """The sign of one library, with its name for who points at it."""
    if name == LIMIT:
        shape = f'<path d="M{x} {y - 8}V{y + 8}" stroke="#000" stroke-width="2"/>'
    elif name == I420:
        shape = f'<circle cx="{x}" cy="{y}" r="5.5" fill="{OURS}"/>'
    elif name == RGB:
        shape = f'<circle cx="{x}" cy="{y}" r="4.5" fill="#fff" stroke="{OURS}" stroke-width="2"/>'
    else:
        place = list(peers).index(name)
        outline = ("m-4 -4h8v8h-8z", "m0 -5l5 5l-5 5l-5 -5z")[place % 2]  # a square or a diamond
        shape = f'<path d="M{x} {y}{outline}" fill="{PEERS[place % len(PEERS)]}"/>'
    return f"<g><title>{escape(name)}</title>{shape}</g>"

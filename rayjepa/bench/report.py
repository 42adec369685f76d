"""What a contest comes to: medians, paired ratios, their geometric means; as text and as plain data."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rayjepa.bench.contest import FFMPEG, Contest
from rayjepa.bench.ours import BARE, I420, ISOLATED, RGB, TOGETHER
from rayjepa.bench.picture import FPS

COMMON = ("h264", "hevc")
"""Codecs over which the geometric means go: nearly all video there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell. Ratios and differences are of readings of the same clip, then the median is taken."""

    cell: str
    clips_per_cpu_s: dict[str, float]
    """By entrant."""
    faster: dict[str, dict[str, float]]
    """Ours (i420, rgb): by peer, its CPU time over ours."""
    decoded_per_used: float
    """Frames that our decoder decodes for each frame of a clip."""
    bare_ms: float
    """PyAV's CPU milliseconds per frame, decoded only."""
    ffmpeg_ms: float | None
    """FFmpeg's own."""
    bare_over_ffmpeg: float | None
    """Of the same round."""
    of_limit: float
    """Share of our clip's CPU time that merely decoding as many frames would take (FFmpeg's own cost, else PyAV's)."""
    isolation_ms: float
    """CPU that a clip costs more in the child than in process."""
    isolation: float
    """The same over the cost in process."""


def rows(contest: Contest, *, frames: int) -> list[Row]:
    """One row per cell, in the order measured. `frames` are those of one clip."""
    return [_row(contest, cell, frames) for cell in contest.files]


def _row(contest: Contest, cell: str, frames: int) -> Row:
    cost: dict[str, dict[tuple[int, int], float]] = {}
    decoded: list[int] = []
    for reading in contest.readings:
        if reading.cell == cell:
            cost.setdefault(reading.entrant, {})[reading.round, reading.clip] = reading.cpu_s
            if reading.entrant == I420 and reading.decoded is not None:
                decoded.append(reading.decoded)
    bare = statistics.median(cost[BARE].values())
    ffmpeg = statistics.median(cost[FFMPEG].values()) if FFMPEG in cost else None
    ours = statistics.median(cost[I420].values())
    paid = [cost[ISOLATED][at] - cost[TOGETHER][at] for at in cost[TOGETHER]]
    return Row(
        cell=cell,
        clips_per_cpu_s={name: 1 / statistics.median(c.values()) for name, c in cost.items() if name not in PER_FRAME},
        faster={
            own: {peer: _median_ratio(cost[peer], cost[own]) for peer in contest.entrants if peer in cost}
            for own in (I420, RGB)
        },
        decoded_per_used=statistics.mean(decoded) / frames,
        bare_ms=1e3 * bare,
        ffmpeg_ms=None if ffmpeg is None else 1e3 * ffmpeg,
        bare_over_ffmpeg=_median_ratio(cost[BARE], cost[FFMPEG]) if FFMPEG in cost else None,
        of_limit=statistics.median(decoded) * (bare if ffmpeg is None else ffmpeg) / ours,
        isolation_ms=1e3 * statistics.median(paid),
        isolation=_median_ratio(cost[ISOLATED], cost[TOGETHER]) - 1,
    )


PER_FRAME = (BARE, FFMPEG)


def _median_ratio(above: dict[tuple[int, int], float], below: dict[tuple[int, int], float]) -> float:
    return statistics.median(above[at] / below[at] for at in above if at in below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Ours over one peer, over the cells that both did."""

    ours: str
    peer: str
    common: float | None
    """Geometric mean over the cells of H.264 and HEVC."""
    worst: float
    """Lowest ratio over all cells."""
    worst_cell: str


def verdicts(table: Sequence[Row], peers: Sequence[str]) -> list[Verdict]:
    """One for each of ours and each peer that gave any clip."""
    found: list[Verdict] = []
    for own in (I420, RGB):
        for peer in peers:
            ratios = {row.cell: row.faster[own][peer] for row in table if peer in row.faster[own]}
            if ratios:
                common = [ratio for cell, ratio in ratios.items() if cell.split("-")[0] in COMMON]
                worst = min(ratios, key=lambda cell: ratios[cell])
                found.append(
                    Verdict(
                        ours=own,
                        peer=peer,
                        common=geometric_mean(common) if common else None,
                        worst=ratios[worst],
                        worst_cell=worst,
                    )
                )
    return found


def geometric_mean(ratios: Iterable[float]) -> float:
    """The mean for ratios: that of twice and half is one."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))


def text(contest: Contest, table: Sequence[Row]) -> str:
    """The report as people read it."""
    peers = list(contest.entrants)
    head = ["cell", "i420", "rgb", "used", "limit", "child ms", "child"] + [f"[{n}]" for n in range(1, len(peers) + 1)]
    body = [_cells(row, peers) for row in table]
    widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
    lines = [_line(cells, widths) for cells in (head, *body)]
    lines += ["", *_legend(peers), "", *_means(table, peers)]
    for cell, reasons in contest.refused.items():
        lines += [f"{cell}: {entrant} gave no clip: {reason}" for entrant, reason in reasons.items()]
    for cell, distances in contest.unlike.items():
        lines += [f"{cell}: {entrant} shows other pictures: {d:g} grey levels" for entrant, d in distances.items()]
    lines += [f"not measured: {name}: {reason}" for name, reason in contest.absent.items()]
    lines += [f"{name}: {', '.join(f'{k} {v}' for k, v in v.items())}" for name, v in contest.versions.items()]
    return "\n".join(line.rstrip() for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([cells[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)])


def _cells(row: Row, peers: Sequence[str]) -> list[str]:
    ours = [f"{row.clips_per_cpu_s[name]:.1f}" for name in (I420, RGB)]
    costs = [f"{row.decoded_per_used:.1f}", f"{row.of_limit:.0%}", f"{row.isolation_ms:.2f}", f"{row.isolation:+.1%}"]
    ratios = [f"{row.faster[I420][peer]:.2f}" if peer in row.faster[I420] else "-" for peer in peers]
    return [row.cell, *ours, *costs, *ratios]


def _legend(peers: Sequence[str]) -> list[str]:
    return [
        "i420, rgb  clips per CPU second of our decoder, in process",
        "used       frames decoded for each frame of a clip",
        "limit      share of our i420 clip's CPU time that decoding as many frames takes in FFmpeg alone",
        "child      CPU that an i420 clip costs more through the isolated decoder",
        *(f"[{n}]        {peer}: its CPU time over ours (i420)" for n, peer in enumerate(peers, 1)),
    ]


def _means(table: Sequence[Row], peers: Sequence[str]) -> list[str]:
    lines = [
        f"{verdict.ours} over {verdict.peer}: "
        + (f"{verdict.common:.2f} (geometric mean, H.264 and HEVC), " if verdict.common else "")
        + f"lowest {verdict.worst:.2f} ({verdict.worst_cell})"
        for verdict in verdicts(table, peers)
    ]
    paired = [row.bare_over_ffmpeg for row in table if row.bare_over_ffmpeg is not None]
    if paired:
        mean = geometric_mean(paired)
        lines.append(
            f"decode alone, PyAV over ffmpeg: {mean:.3f} per frame (geometric mean), highest {max(paired):.3f}"
        )
    share = geometric_mean(1 + row.isolation for row in table) - 1
    lines.append(
        f"isolation: {statistics.median(row.isolation_ms for row in table):.2f} ms a clip (median), "
        f"{share:+.1%} (geometric mean)"
    )
    return lines


def figures(contest: Contest, table: Sequence[Row]) -> dict[str, Any]:
    """The report as plain data; the readings themselves are in the contest."""
    return {
        "cells": [asdict(row) for row in table],
        "verdicts": [asdict(verdict) for verdict in verdicts(table, list(contest.entrants))],
        "keys_every_s": {cell: file.frames / FPS / file.keys for cell, file in contest.files.items()},
    }

"""What timed steps come to: medians by part, paired ratios, FLOP/s; as text, as plain data and as a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from rayjepa.bench.spread import Spread, spread
from rayjepa.bench.step import OURS, THEIRS, Measured
from rayjepa.bench.step_ours import INPUTS, PARTS
from rayjepa.train.budget import GPUS, Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Medians over the rounds of one side."""

    parts_ms: dict[str, float]
    """By part, in the order of a step."""
    parts_cpu_ms: dict[str, float]
    """The same in CPU time of the process, all threads."""
    whole_ms: float
    """Of the whole step; the peer's has no views and masks."""
    learning_ms: float
    """Of the step without views and masks."""
    cpu_ms: float
    """That in CPU time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All of it."""

    sides: dict[str, Side]
    ratio: Spread | None
    """The peer's time over ours, of the same round, without views and masks."""
    cpu_ratio: Spread | None
    """The same of CPU time."""
    loss_difference: float | None
    """Largest relative difference of the two losses over the timed steps."""
    clips_per_s: float
    flops: float
    """Of the model in one step, for the tokens of the timed steps; median."""
    flops_per_s: float
    """Over the whole step."""
    matmul_flops_per_s: float
    of_matmul: float
    """Share of the matrix product's speed of the same round that the whole step reaches."""
    gpu: str | None
    """Whose peak `mfu` is a share of."""
    mfu: float | None
    """Model FLOPs utilisation, on a GPU whose peak is known."""


def summary(measured: Measured) -> Summary:
    """Medians over the rounds of `measured`."""
    ours, theirs = measured.of(OURS), measured.of(THEIRS)
    pairs = list(zip(ours, theirs, strict=True)) if theirs else []
    whole_s = statistics.median(reading.whole_s for reading in ours)
    flops_per_s = statistics.median(reading.taken.flops / reading.whole_s for reading in ours)
    gpu = gpu_of(measured.device)
    return Summary(
        sides={entrant: _side(measured, entrant) for entrant in (OURS, THEIRS) if measured.of(entrant)},
        ratio=spread([b.learning_s / a.learning_s for a, b in pairs]),
        cpu_ratio=spread([b.learning_cpu_s / a.learning_cpu_s for a, b in pairs]),
        loss_difference=max((abs(b.taken.loss / a.taken.loss - 1) for a, b in pairs), default=None),
        clips_per_s=measured.run.train.clips / whole_s,
        flops=statistics.median(reading.taken.flops for reading in ours),
        flops_per_s=flops_per_s,
        matmul_flops_per_s=statistics.median(reading.matmul for reading in ours),
        of_matmul=statistics.median(r.taken.flops / r.whole_s / r.matmul for r in ours),
        gpu=gpu.name if gpu else None,
        mfu=flops_per_s / (gpu.bf16 if measured.run.train.precision == "bf16" else gpu.fp32) if gpu else None,
    )


def gpu_of(device: str) -> Gpu | None:
    """The GPU whose short name is part of what PyTorch calls the device; none: its peak is not known."""
    return next((gpu for name, gpu in GPUS.items() if name in device.lower()), None)


def text(measured: Measured) -> str:
    """The report as people read it."""
    found, run = summary(measured), measured.run
    grid = " x ".join(map(str, run.grid))
    lines = [
        f"{run.train.clips} clips of {grid} tokens in {run.train.accumulation} micro-batch(es), {run.train.precision}, "
        f"{measured.parameters:,} parameters, engine {run.train.engine}, {run.train.threads} thread(s), "
        f"{measured.device}",
        "",
        *_table(found),
        "",
        f"{_number(found.clips_per_s)} clips/s; {_number(found.flops / 1e9)} GFLOP of the model a step, of "
        f"{_number(found.flops_per_s / 1e9)} GFLOP/s: {found.of_matmul:.0%} of this machine's matrix product "
        f"({_number(found.matmul_flops_per_s / 1e9)} GFLOP/s, same rounds)",
    ]
    if found.mfu is not None:
        lines.append(f"MFU {found.mfu:.1%} of the peak of {found.gpu}")
    lines.append(f"peak memory {_number(measured.memory / 2**20)} MiB; the host waits for {measured.syncs} reading(s)")
    if found.ratio is None or found.cpu_ratio is None:
        return "\n".join([*lines, f"no peer: {measured.absent}"])
    for what, ratio in (("time", found.ratio), ("CPU time", found.cpu_ratio)):
        lines.append(
            f"{THEIRS} over {OURS}, {what} without views and masks: {ratio.median:.2f} "
            f"(half of the rounds {ratio.low:.2f} to {ratio.high:.2f})"
        )
    lines.append(f"losses of both differ by at most {_number(found.loss_difference or 0.0)}, relative")
    return "\n".join(lines)


def figures(measured: Measured) -> dict[str, Any]:
    """The report as plain data, and all readings."""
    return {
        "summary": asdict(summary(measured)),
        "device": measured.device,
        "parameters": measured.parameters,
        "memory_bytes": measured.memory,
        "host_waits": measured.syncs,
        "absent": measured.absent,
        "readings": [asdict(reading) for reading in measured.readings],
    }


COLOURS = ("#999999", "#bbbbbb", "#0072b2", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#e69f00", "#000000")
WIDTH, LEFT, BAR = 960, 150, 34


def svg(measured: Measured) -> str:
    """A bar for each side, cut into its parts; a document of its own."""
    found = summary(measured)
    longest = max(sum(side.parts_ms.values()) for side in found.sides.values())
    colours = dict(zip(PARTS, (*COLOURS, "#dddddd"), strict=True))
    top = 92
    height = top + (BAR + 14) * len(found.sides) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="12" y="24" font-size="15" font-weight="600">Milliseconds of a training step (medians)</text>',
    ]
    for k, part in enumerate(PARTS):
        x, y = 20 + 150 * (k % 6), 40 + 18 * (k // 6)
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colours[part]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 10}">{part}</text>')
    for k, (entrant, side) in enumerate(found.sides.items()):
        y, x = top + k * (BAR + 14), float(LEFT)
        parts.append(f'<text x="{LEFT - 12}" y="{y + 21}" text-anchor="end">{escape(entrant)}</text>')
        for part, ms in side.parts_ms.items():
            long = (WIDTH - LEFT - 90) * ms / longest
            title = f"<title>{part}: {_number(ms)} ms</title>"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{long:.1f}" height="{BAR}" fill="{colours[part]}">{title}</rect>'
            )
            x += long
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 21}">{_number(side.whole_ms)} ms</text>')
    return "\n".join([*parts, "</svg>\n"])


def _side(measured: Measured, entrant: str) -> Side:
    readings = measured.of(entrant)
    met = [part for part in PARTS if any(part in reading.taken.parts for reading in readings)]
    return Side(
        parts_ms={part: _ms([reading.taken.parts.get(part, 0.0) for reading in readings]) for part in met},
        parts_cpu_ms={part: _ms([reading.taken.cpu.get(part, 0.0) for reading in readings]) for part in met},
        whole_ms=_ms([reading.whole_s for reading in readings]),
        learning_ms=_ms([reading.learning_s for reading in readings]),
        cpu_ms=_ms([reading.learning_cpu_s for reading in readings]),
    )


def _ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def _table(found: Summary) -> list[str]:
    """A row for each part, with the milliseconds of each side, and the share of ours."""
    ours = found.sides[OURS]
    rows = [["ms", "share", *found.sides, ""]]
    for part in PARTS:
        cells = [_number(side.parts_ms[part]) if part in side.parts_ms else "-" for side in found.sides.values()]
        rows.append([part, f"{ours.parts_ms.get(part, 0.0) / ours.whole_ms:.1%}", *cells])
    for name, key in (
        ("whole step", "whole_ms"),
        (f"without {' and '.join(INPUTS)}", "learning_ms"),
        ("CPU", "cpu_ms"),
    ):
        rows.append([name, "", *(_number(getattr(side, key)) for side in found.sides.values())])
    return [f"{row[0]:<24}{row[1]:>7}" + "".join(f"{cell:>22}" for cell in row[2:]) for row in rows]


def _number(value: float) -> str:
    """Three significant digits. Not `rayjepa.report`'s own, which is not there without PyArrow."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

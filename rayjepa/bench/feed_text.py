"""`rayjepa bench feed` in words: rates, waits, growth, ceiling, what 1,024 GPUs would need, and what bounds."""

import statistics
import textwrap
from collections.abc import Iterator, Sequence

from rayjepa.bench.feed import (
    DEMANDS,
    GPU_CLIPS_PER_S,
    GPUS,
    SLOW_DEMAND,
    SLOW_EVERY,
    SLOW_S,
    Ceiling,
    Measured,
    Waits,
)
from rayjepa.bench.feed_verdict import verdict
from rayjepa.bench.spread import Spread, spread
from rayjepa.config import RunConfig
from rayjepa.report.numbers import number, plural, share

WIDE = 100
LEFT = 34
TARGET, MOST_WAIT = 0.9, 0.01
"""Ratios to reach, and the share of the step's time that waits must stay under at 1.2."""


def text(measured: Measured, run: RunConfig) -> str:
    """The report as people read it, in lines of at most WIDE characters."""
    blocks = [_head(measured, run)]
    if measured.rounds:
        blocks += [_rates(measured), _waits(measured)]
    if measured.slow:
        blocks.append(_slow(measured))
    if measured.growth:
        blocks.append(_growth(measured))
    if measured.ceiling:
        blocks += [_ceiling(measured.ceiling), [*_scale(measured, run)]]
    loads = [f"{part} {before:.1f} to {after:.1f}" for part, (before, after) in measured.loads.items()]
    blocks.append(_folded(f"Load average before and after each part: {', '.join(loads)}."))
    if measured.rounds:
        blocks.append(bounds(measured, run))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def bounds(measured: Measured, run: RunConfig) -> list[str]:
    """What holds back trainers that take without end, and what to turn."""
    fed = sorted((r.fed for r in measured.rounds), key=lambda fed: fed.clips_per_s)[len(measured.rounds) // 2]
    said = verdict(fed, run)
    lines = _folded(f"WHAT BOUNDS, if trainers take without end (median round): {said.found}.")
    for remedy in said.remedies:
        lines += _folded(f"→ {remedy}", indent="  ")
    return lines


def _head(measured: Measured, run: RunConfig) -> list[str]:
    data = run.data
    busy = measured.decoders + measured.workers
    left = (
        f"{plural(measured.cores, 'core')}: one for each of them"
        if busy <= measured.cores
        else f"{plural(measured.cores, 'core')}: {busy} processes share them, so rates are lower than they could be"
    )
    return _folded(
        f"{plural(measured.decoders, 'decode actor')} and {plural(measured.workers, 'trainer')} on {left}. "
        f"Clips of {data.frames} x {data.size_px} x {data.size_px} {data.pixels} ({measured.clip_bytes / 1e6:.2g} MB), "
        f"micro-batches of {measured.micro_batch}, blocks of {measured.block} micro-batches, {measured.prefetch} held "
        "ready. Rates are of steady state: between two blocks that were both decoded after counting had begun."
    )


def _rates(measured: Measured) -> list[str]:
    rounds = measured.rounds
    lines = [f"RATES in clips/s, medians of {plural(len(rounds), 'interleaved round')} [half of them lie between]"]
    processes = "1 process" if measured.decoders == 1 else f"{measured.decoders} processes"
    for name, values in (
        (f"decoders alone ({measured.decoders})", [r.alone.clips_per_s for r in rounds]),
        (f"PyTorch's DataLoader, {processes}", [r.loader.clips_per_s for r in rounds]),
        ("stream into null trainers", [r.stream.clips_per_s for r in rounds]),
    ):
        lines.append(_row(name, spread(values)))
    for name, ratio in (("stream / decoders alone", measured.of_alone), ("stream / DataLoader", measured.of_loader)):
        met = "" if ratio is None else f"target {TARGET:.2f} {'reached' if ratio.median >= TARGET else 'MISSED'}"
        lines.append(_row(name, ratio, met, digits=2))
    first_s = statistics.median(r.first_s for r in rounds)
    lines.append(f"  {'first micro-batch of the stream':<{LEFT}}{first_s:8.1f} s after its start")
    return lines


def _waits(measured: Measured) -> list[str]:
    lines = ["WAITS of trainers that sleep as if they computed, share of their time"]
    for factor in DEMANDS:
        found = measured.wait_share(factor)
        longest = max(r.waits[factor].longest_s for r in measured.rounds)
        goal = ""
        if factor == SLOW_DEMAND and found is not None:
            goal = f", target < 1 % {'reached' if found.median < MOST_WAIT else 'MISSED'}"
        lines.append(_share_row(f"capacity = {factor:g} x demand", found, f"longest {longest:.2f} s{goal}"))
    return lines


def _slow(measured: Measured) -> list[str]:
    capacity = statistics.median(r.capacity for r in measured.slow)
    head = (
        f"SLOW CLIPS: one in {SLOW_EVERY:,} takes {SLOW_S:g} s longer in its decoder; {number(capacity)} clips/s are "
        f"left, which is {SLOW_DEMAND:g} x the demand ({plural(len(measured.slow), 'round')})"
    )

    def row(name: str, waited: Sequence[Waits]) -> str:
        longest = max(w.longest_s for w in waited)
        return _share_row(name, spread([w.share for w in waited]), f"longest {longest:.2f} s")

    as_set, off = [r.as_set for r in measured.slow], [r.off for r in measured.slow]
    return [
        *_folded(head),
        row(f"wait, {measured.prefetch} micro-batches held ready", as_set),
        row("wait, 2 ready, 1 in a block (off)", off),
        "  Beside what trainers hold ready, Ray Data decodes ahead into the object store.",
    ]


def _growth(measured: Measured) -> list[str]:
    lines = [
        "GROWTH in clips/s, one measurement each, all else as above",
        f"{'':<26}{'stream':>10}{'':>10}{'decoders alone':>18}{'first micro-batch':>20}",
    ]
    for name, points in measured.growth.items():
        base = points[0]
        for point in points:
            times = "" if point is base else f"x {point.stream / base.stream:.2f}"
            alone = "" if point.alone is None else f"{point.alone:.0f}  ({point.stream / point.alone:.2f})"
            mark = " *" if point.is_crowded else ""
            first = f"{name if point is base else '':<14}{point.at:>10,}"
            lines.append(f"  {first}{point.stream:>10.0f}{times:>10}{alone:>18}{point.first_s:>18.1f} s{mark}")
    if any(point.is_crowded for points in measured.growth.values() for point in points):
        lines.append("  * more processes than cores: none is left to the trainer")
    return lines


def _ceiling(found: Sequence[Ceiling]) -> list[str]:
    """A row for each number of trainers, a column for each size of block."""
    sizes = sorted({c.block for c in found})
    lines = ["CEILING of the executor: blocks without pixels, decoders and trainers that do nothing, blocks/s"]
    lines.append("  " + f"{'micro-batches in a block':<{LEFT}}" + "".join(f"{m:>10}" for m in sizes))
    for trainers in sorted({c.trainers for c in found}):
        by_size = {c.block: c for c in found if c.trainers == trainers}
        cells = "".join(f"{by_size[m].blocks_per_s:>10.0f}" if m in by_size else f"{'-':>10}" for m in sizes)
        lines.append("  " + f"{plural(trainers, 'trainer'):<{LEFT}}" + cells)
    most = max(found, key=lambda c: c.clips_per_s)
    lines += _folded(
        f"At most {number(most.clips_per_s)} clips/s ({most.trainers} trainers, {most.block} micro-batches a block).",
        indent="  ",
    )
    return lines


def _scale(measured: Measured, run: RunConfig) -> Iterator[str]:
    """The arithmetic for 1,024 GPUs behind one stream."""
    widest = max(c.trainers for c in measured.ceiling)
    slowest = min((c for c in measured.ceiling if c.trainers == widest), key=lambda c: c.blocks_per_s)
    gpus, per_gpu = GPUS, GPU_CLIPS_PER_S
    need = gpus * per_gpu
    size = measured.micro_batch
    alone = need / size
    least = -(-alone // slowest.blocks_per_s)
    mb = least * size * measured.clip_bytes / 1e6
    yield from _folded(
        f"{gpus:,} GPUs, on paper: at {per_gpu:.0f} clips/s each (ViT-L on H100, estimated) they take {need:,.0f} "
        f"clips/s, which are {alone:,.0f} micro-batches of {size} clips. This machine's executor moves at least "
        f"{slowest.blocks_per_s:.0f} blocks/s to {widest} trainers, so a block must hold {number(least)} "
        f"micro-batches (cluster.block) of one rank: {mb:,.0f} MB at {run.data.size_px} px, and "
        f"{need * measured.clip_bytes / 1e9:,.1f} GB/s in all, which flow between nodes and not through the "
        "executor. Micro-batches of more clips need smaller cluster.block in proportion, and a head node's "
        "cores are faster than these. The number of trainers beyond those above is extrapolated, not measured."
    )


def _row(name: str, value: Spread | None, more: str = "", *, digits: int = 0) -> str:
    if value is None:
        return f"  {name:<{LEFT}}{'-':>8}"
    cells = f"{value.median:8.{digits}f}  [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return f"  {name:<{LEFT}}{cells:<28}{more}".rstrip()


def _share_row(name: str, value: Spread | None, more: str) -> str:
    assert value is not None, "a part that was measured has a value"
    cells = f"{share(value.median):>8}  [{number(100 * value.low)}, {number(100 * value.high)}]"
    return f"  {name:<{LEFT}}{cells:<28}{more}"


def _folded(words: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(words, WIDE, initial_indent=indent, subsequent_indent=indent + "  " if indent else "")

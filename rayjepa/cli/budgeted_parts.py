"""The page of `rayjepa plan` for a run of several phases or streams: a line for each, and what they come to."""

import math
from collections.abc import Sequence

from rich.console import Console

from rayjepa.cli.budgeted import lines_of, memory_remarks, memory_table, rate_remarks, table_of
from rayjepa.cli.units import duration, flop, in_bytes, rate_of
from rayjepa.config import RunConfig, prefetch_of
from rayjepa.masks import is_padded, names
from rayjepa.train.budget import DECODE_DEFAULT, Part, PhaseBudget, RunBudget, decode_s


def show_parts(console: Console, run: RunConfig, found: RunBudget) -> None:
    """Print all of it, and last what to see to."""
    first, gpus = found.parts[0].budget, "1 GPU" if run.ranks == 1 else f"{run.ranks:,} GPUs"
    console.print(f"[bold]{gpus} of kind {first.gpu.name}, {first.mfu:.0%} MFU[/bold]  (nothing is started)\n")
    lines_of(
        console,
        [
            (
                "parameters",
                f"encoder {first.encoder:,}, predictor {first.predictor:,}, target {first.encoder:,} (not trained)",
            ),
            ("step", f"{run.train.clips:,} clips in every phase"),
        ],
    )
    _clips(console, found)
    _tokens(console, found)
    largest = found.largest
    memory_table(console, largest.stream.run, largest.budget, of=f": {part_name(found, largest)}, which needs most")
    _time(console, run, found)
    _feed(console, run, found)
    lines_of(console, _storage(run, found), title="checkpoints")
    for line in remarks_on(found):
        console.print(line, style="bold red" if line.startswith("error") else "yellow")


def part_name(found: RunBudget, part: Part) -> str:
    """What tells a part from the others: its phase, its stream, or both."""
    named = [part.phase.name] if len(found.phases) > 1 else []
    return ", ".join([*named, part.stream.name] if any(len(p.parts) > 1 for p in found.phases) else named)


def remarks_on(found: RunBudget) -> list[str]:
    """What to see to: of memory where most is needed, of time where steps are quickest."""
    largest, quickest = found.largest, max(found.phases, key=lambda phase: phase.clips_per_s)
    name = part_name(found, largest)
    memory = [f"{line} ({name})" for line in memory_remarks(largest.stream.run, largest.budget)]
    return [
        *memory,
        *rate_remarks(quickest.phase.run, quickest.parts[0].budget, clips_per_s=quickest.clips_per_s),
    ]


def _clips(console: Console, found: RunBudget) -> None:
    table = table_of("clips", "", "share", "frames", "fps", "px", "tokens", "micro-batch", "compute", "a clip's bytes")
    for part in found.parts:
        run = part.stream.run
        table.add_row(
            part_name(found, part),
            f"{part.share:.0%}",
            f"{run.data.frames}",
            f"{run.data.fps:g}",
            f"{run.data.size_px}",
            f"{' x '.join(map(str, run.grid))} = {math.prod(run.grid):,}",
            f"{run.micro_batch}",
            flop(part.budget.flops.model),
            in_bytes(part.budget.clip_bytes),
        )
    console.print(table, "")


def _tokens(console: Console, found: RunBudget) -> None:
    draws = ", ".join(dict.fromkeys(str(part.budget.draws) for part in found.parts))
    table = table_of(f"masks, mean of {draws} steps", "", "", "context", "predicted")
    for part in found.parts:
        run, tokens = part.stream.run, math.prod(part.stream.run.grid)
        for place, (name, counts) in enumerate(zip(names(run.masks), part.budget.counts, strict=True)):
            shares = [f"{n:,.0f} ({n / tokens:.1%})" for n in counts]
            padded = " (padded)" if is_padded(run.masks) else ""
            table.add_row(part_name(found, part) if place == 0 else "", f"{name}{padded}", *shares)
    console.print(table, "")


def _time(console: Console, run: RunConfig, found: RunBudget) -> None:
    table = table_of("time", "", "steps", "clips/s", "a GPU", "a step", "compute of a clip", "takes", "of one GPU")
    for phase in found.phases:
        steps, rate = phase.phase.stop - phase.phase.first, phase.clips_per_s
        step = duration(run.train.clips / rate / 3600)
        table.add_row(
            phase.phase.name,
            f"{steps:,}",
            *(rate_of(rate), rate_of(rate / run.ranks), step, flop(phase.flops)),
            *(duration(phase.hours), duration(phase.hours * run.ranks)),
        )
    if len(found.phases) > 1:
        whole = (duration(found.hours), duration(found.hours * run.ranks))
        table.add_row("all", f"{run.steps:,}", "", "", "", "", *whole, style="bold")
    console.print(table)
    more = "" if found.cost is None else f"; costs {found.cost:,.2f} for the GPUs, decode and storage on top"
    console.print(f"[dim]{run.samples:,} samples{more}[/dim]\n")


def _feed(console: Console, run: RunConfig, found: RunBudget) -> None:
    table = table_of("feed", "", "decode cores", "a GPU", "stream", "to each worker", "held ready by each")
    for phase in found.phases:
        cores, flow = phase.decode_cores, phase.clip_bytes * phase.clips_per_s
        ahead = (
            prefetch_of(phase.phase.run) * phase.phase.run.micro_batch * max(p.budget.clip_bytes for p in phase.parts)
        )
        flows = f"{in_bytes(flow)}/s", f"{in_bytes(flow / run.ranks)}/s"
        table.add_row(phase.phase.name, rate_of(cores), rate_of(cores / run.ranks), *flows, in_bytes(ahead))
    console.print(table)
    assumed = all(_is_assumed(part) for part in found.parts)
    source = f"assumed of all videos: H.264 {DECODE_DEFAULT}" if assumed else "clips/s of a core as given"
    console.print(f"[dim]{source}[/dim]\n")


def _is_assumed(part: Part) -> bool:
    return abs(part.budget.clips_per_core_s - 1 / decode_s(part.stream.run, DECODE_DEFAULT)) < 1e-9


def _storage(run: RunConfig, found: RunBudget) -> list[tuple[str, str]]:
    one = found.parts[0].budget.checkpoint_bytes
    keep = max(phase.phase.run.checkpoint.keep for phase in found.phases)
    return [
        ("size", f"{in_bytes(one)} each, {in_bytes(one / run.ranks)} from each rank"),
        ("kept", f"{in_bytes(keep * one)} (checkpoint.keep={keep}), and one more while it is written"),
        *(("every", _every(found.phases, phase)) for phase in found.phases),
    ]


def _every(phases: Sequence[PhaseBudget], phase: PhaseBudget) -> str:
    every, steps = phase.phase.run.checkpoint.every_steps, phase.phase.stop - phase.phase.first
    of = f" of {phase.phase.name}" if len(phases) > 1 else ""
    if every >= steps:
        return f"end{of}: checkpoint.every_steps={every} is not below its {steps:,} steps"
    return f"{every} steps{of} = {duration(phase.hours * every / steps)}"

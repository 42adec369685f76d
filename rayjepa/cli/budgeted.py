"""The page of `rayjepa plan`: what a run will need, laid out to be read."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rayjepa.cli.units import duration, flop, in_bytes, rate_of
from rayjepa.config import RunConfig, prefetch_of
from rayjepa.masks import is_padded, names
from rayjepa.train.budget import DECODE_DEFAULT, DECODE_S, Budget, decode_s
from rayjepa.train.footprint import ENGINES, Engine

NAMES: dict[Engine, str] = {engine: engine.replace("zero", "ZeRO-") for engine in ENGINES}


def show(console: Console, run: RunConfig, found: Budget) -> None:
    """Print all of it, and last what to see to."""
    slots, height, width = run.grid
    gpus = "1 GPU" if run.ranks == 1 else f"{run.ranks:,} GPUs"
    console.print(f"[bold]{gpus} of kind {found.gpu.name}, {found.mfu:.0%} MFU[/bold]  (nothing is started)\n")
    lines_of(
        console,
        [
            ("clip", f"{run.data.frames} frames at {run.data.fps:g} fps, {run.data.size_px} px"),
            ("tokens", f"{slots} x {height} x {width} = {math.prod(run.grid):,}, each {_patch(run)}"),
            (
                "parameters",
                f"encoder {found.encoder:,}, predictor {found.predictor:,}, target {found.encoder:,} (not trained)",
            ),
            ("step", f"{run.train.clips:,} clips = {gpus} x {run.micro_batch} x {_micro_batches(run)}"),
        ],
    )
    _masks(console, run, found)
    _compute(console, run, found)
    memory_table(console, run, found)
    lines_of(console, _time(run, found), title="time")
    lines_of(console, _feed(run, found), title="feed")
    lines_of(console, _storage(run, found), title="checkpoints")
    for line in remarks(run, found):
        console.print(line, style="bold red" if line.startswith("error") else "yellow")


def _masks(console: Console, run: RunConfig, found: Budget) -> None:
    tokens, padded = math.prod(run.grid), is_padded(run.masks)
    unused = [] if padded else ["unused"]
    table = table_of(f"masks, mean of {found.draws} of the run's steps", "", "context", "predicted", *unused)
    for name, (context, target) in zip(names(run.masks), found.counts, strict=True):
        counts = (context, target) if padded else (context, target, tokens - context - target)
        table.add_row(name, *(f"{n:,.0f} ({n / tokens:.1%})" for n in counts))
    console.print(table, *([] if padded else [""]))
    if padded:
        console.print(f"[dim]rows are padded to the longest of a micro-batch of {run.micro_batch}[/dim]\n")


def _compute(console: Console, run: RunConfig, found: Budget) -> None:
    flops = found.flops
    table = table_of("compute of one clip", "", "forward", "with backward", "share")
    for name, forward, times in (
        ("target", flops.target, 1),
        ("context encoder", flops.context, 3),
        ("predictor", flops.predictor, 3),
    ):
        table.add_row(name, flop(forward), flop(times * forward), f"{times * forward / flops.model:.0%}")
    table.add_row("model", "", f"[bold]{flop(flops.model)}[/bold]", "100%")
    if run.train.checkpoint_blocks:
        table.add_row("with blocks recomputed", "", flop(found.hardware_flops), "")
    console.print(table, "")


def memory_table(console: Console, run: RunConfig, found: Budget, *, of: str = "") -> None:
    """Print the memory of a rank by engine, `of` a part of the run."""
    heads = ("parameters", "master", "gradients", "moments", "target", "state", "buckets", "activations*", "peak*")
    unit, size = ("GB", 1e9) if found.memory[found.chosen].peak >= 1e9 else ("MB", 1e6)
    table = table_of(f"memory of one GPU in {unit}, of {found.gpu.memory / size:,.0f}{of}", "", *heads)
    for engine, m in found.memory.items():
        parts = (m.parameters, m.master, m.gradients, m.moments, m.target, m.state, m.buckets, m.activations, m.peak)
        chosen = engine == found.chosen
        table.add_row(
            f"{'>' if chosen else ' '} {NAMES[engine]}",
            *(f"{n / size:,.2f}" for n in parts),
            style="bold" if chosen else None,
        )
    console.print(table)
    kept = "blocks recomputed" if run.train.checkpoint_blocks else "all kept"
    clips = f"{run.micro_batch} clip" + "s" * (run.micro_batch > 1)
    console.print(f"[dim]* estimated: autograd's tensors of {clips}, {kept}, in the drawn step with most[/dim]\n")


def _time(run: RunConfig, found: Budget) -> list[tuple[str, str]]:
    per_gpu, rate = found.clips_per_s / run.ranks, found.clips_per_s / run.train.clips
    gpu_hours = found.hours * run.ranks
    lines = [
        ("rate", f"{rate_of(found.clips_per_s)} clips/s, {rate_of(per_gpu)} a GPU; {1 / rate:.3g} s a step"),
        ("run", f"{run.train.steps:,} steps = {run.samples:,} samples"),
        ("takes", f"{duration(found.hours)} = {duration(gpu_hours)} of one GPU"),
    ]
    if found.cost is not None:
        lines.append(("costs", f"{found.cost:,.2f} for the GPUs; decode, storage and restarts come on top"))
    return lines


def _feed(run: RunConfig, found: Budget) -> list[tuple[str, str]]:
    """Decode cores for the assumed rate, and for other videos."""
    cores = found.clips_per_s / found.clips_per_core_s
    assumed = abs(found.clips_per_core_s - 1 / decode_s(run, DECODE_DEFAULT)) < 1e-9
    source = f"assumed: H.264 {DECODE_DEFAULT}" if assumed else "as given"
    lines = [
        (
            "decode",
            f"{rate_of(cores)} cores, {rate_of(cores / run.ranks)} a GPU, at {found.clips_per_core_s:.3g} clips/s "
            f"a core ({source})",
        )
    ]
    others = [f"{name}: {rate_of(found.clips_per_s * decode_s(run, name))}" for name in DECODE_S]
    if assumed:
        lines += [("", line) for line in others if not line.startswith(DECODE_DEFAULT)]
    bytes_per_s = found.clip_bytes * found.clips_per_s
    ahead = prefetch_of(run) * run.micro_batch * found.clip_bytes
    lines += [
        ("stream", f"{in_bytes(bytes_per_s)}/s, {in_bytes(bytes_per_s / run.ranks)}/s to each worker"),
        ("", f"{in_bytes(found.clip_bytes)} a clip; {in_bytes(ahead)} held ready by each (cluster.prefetch)"),
    ]
    return lines


def _storage(run: RunConfig, found: Budget) -> list[tuple[str, str]]:
    one, keep = found.checkpoint_bytes, run.checkpoint.keep
    return [
        ("size", f"{in_bytes(one)} each, {in_bytes(one / run.ranks)} from each rank"),
        ("kept", f"{in_bytes(keep * one)} (checkpoint.keep={keep}), and one more while it is written"),
        ("every", f"{run.checkpoint.every_steps} steps = {duration(found.hours * _share_of_run(run))}"),
    ]


def remarks(run: RunConfig, found: Budget) -> list[str]:
    """What to see to before hours are spent: lines that begin with `error` or `warning`."""
    return [*memory_remarks(run, found), *rate_remarks(run, found, clips_per_s=found.clips_per_s)]


def memory_remarks(run: RunConfig, found: Budget) -> list[str]:
    """What does not fit, or hardly, with the knobs that help."""
    memory, room = found.memory[found.chosen], found.gpu.memory
    said: list[str] = []
    if memory.state + memory.buckets > room:
        fits = [NAMES[e] for e, m in found.memory.items() if m.state + m.buckets <= room]
        way = f"; it fits with {' and '.join(fits)} (train.engine, zero.stage)" if fits else "; no stage makes it fit"
        said.append(
            f"error: {in_bytes(memory.state + memory.buckets)} of model state and buckets do not fit into the "
            f"{found.gpu.name}'s {in_bytes(room)}{way}"
        )
    elif not found.fits:
        said.append(
            f"warning: the peak is estimated at {in_bytes(memory.peak)}, the {found.gpu.name} has {in_bytes(room)}: "
            f"raise train.accumulation={run.train.accumulation} (micro-batch of {run.micro_batch})"
            + ("" if run.train.checkpoint_blocks else ", or set train.checkpoint_blocks=true")
        )
    elif memory.peak > 0.9 * room:
        said.append(f"warning: the peak is estimated at {memory.peak / room:.0%} of the {found.gpu.name}'s memory")
    return said


def rate_remarks(run: RunConfig, found: Budget, *, clips_per_s: float) -> list[str]:
    """What makes time and feed bounds rather than estimates, or slower than need be."""
    said: list[str] = []
    step_s = run.train.clips / clips_per_s
    if step_s < 0.01:
        said.append(
            f"warning: a step of {1000 * step_s:.2g} ms is less than starting its kernels takes: no GPU reaches "
            f"{found.mfu:.0%} with a model this small, so time and feed are bounds"
        )
    if run.train.precision == "fp32":
        said.append(
            f"warning: train.precision=fp32 computes without tensor cores: {found.gpu.fp32 / 1e12:g} TFLOP/s at the "
            f"peak, as used here, against {found.gpu.bf16 / 1e12:g} in bf16"
        )
    return said


def table_of(title: str, *heads: str) -> Table:
    """An empty table; all columns but the first are of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold cyan", box=None, padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right", header_style="dim", no_wrap=True)
    return table


def lines_of(console: Console, lines: Sequence[tuple[str, str]], *, title: str | None = None) -> None:
    """Print names and what is said of them, in two columns."""
    table = Table(
        title=title, title_justify="left", title_style="bold cyan", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    table.add_column(style="dim", min_width=10)
    table.add_column()
    for name, text in lines:
        table.add_row(name, text)
    console.print(table, "")


def _patch(run: RunConfig) -> str:
    side = run.model.patch_px
    return f"{run.model.tubelet} frames x {side} x {side} px"


def _micro_batches(run: RunConfig) -> str:
    n = run.train.accumulation
    return "1 micro-batch" if n == 1 else f"{n} micro-batches"


def _share_of_run(run: RunConfig) -> float:
    return run.checkpoint.every_steps / run.train.steps

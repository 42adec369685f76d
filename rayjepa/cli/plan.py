"""The verb `plan`: what a run will need, as a page of figures; nothing is started."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from rayjepa.cli.derived import require_one_model
from rayjepa.config import RunConfig, phases_of, resolve, streams_of
from rayjepa.train.budget import DECODE_DEFAULT, Budget, Gpu, Part, RunBudget, budget, decode_s, gpu_named
from rayjepa.train.footprint import Counts

DRAWS = 200
"""Steps whose masks are drawn: the mean context of 16 x 256 px is then known to 1 % (its spread is a sixth)."""
LEAST_DRAWS = 50
"""The same of each part of a run with many parts: known to 2.5 %."""


def plan(
    preset: str,
    overrides: Mapping[str, object],
    *,
    mfu: float,
    gpu: str,
    price: float | None = None,
    clips_per_core: float | None = None,
    out: Path | None = None,
) -> int:
    """Print what the run needs, and write the figures to `out`; the status is 0 whether or not it fits."""
    run = resolve(preset, overrides)
    card = gpu_named(gpu)
    from rayjepa.cli.budgeted import show
    from rayjepa.cli.budgeted_parts import show_parts

    require_one_model(run)
    found = budgeted(run, gpu=card, mfu=mfu, price=price, clips_per_core=clips_per_core)
    console = Console(width=None if Console().is_terminal else 110, highlight=False)
    if len(found.parts) == 1:
        show(console, run, found.parts[0].budget)
    else:
        show_parts(console, run, found)
    if out is not None:
        out.write_text(json.dumps(figures_of(run, found), indent=1))
        console.print(f"wrote {out}")
    return 0


def budgeted(
    run: RunConfig, *, gpu: Gpu, mfu: float, price: float | None = None, clips_per_core: float | None = None
) -> RunBudget:
    """What each stream of each phase needs.

    Units:   `clips_per_core` is clips per second that a core decodes, of the first stream of the first phase; others
             are taken to differ as their frames do.
    """
    from rayjepa.model import sizes

    encoder, predictor = sizes(run)
    phases = [(phase, streams_of(phase.run)) for phase in phases_of(run)]
    draws = max(DRAWS // sum(len(streams) for _, streams in phases), LEAST_DRAWS)
    first_s = decode_s(phases[0][1][0].run, DECODE_DEFAULT)
    parts: list[Part] = []
    for phase, streams in phases:
        for stream in streams:
            own = clips_per_core and clips_per_core * first_s / decode_s(stream.run, DECODE_DEFAULT)
            needs = budget(
                stream.run,
                encoder=encoder,
                predictor=predictor,
                drawn=drawn_counts(stream.run, first=phase.first, draws=draws),
                gpu=gpu,
                mfu=mfu,
                price=price,
                clips_per_core_s=own,
            )
            share = stream.weight / sum(each.weight for each in streams)
            parts.append(Part(phase=phase, stream=stream, share=share, budget=needs))
    return RunBudget.of(parts)


def drawn_counts(run: RunConfig, *, first: int = 0, draws: int = DRAWS) -> list[Counts]:
    """Context and target tokens of each mask type in steps of the run from step `first` on, spread over all of it.

    Counts are a function of (seed, step), the same for every sample of a step, so one made-up sample shows them; but
    with masks.truncate=none they are those of the longest of a micro-batch, to which the others are padded.
    """
    from rayjepa.data.clip import ClipSpec, Window
    from rayjepa.masks import is_padded, splits_for

    sample = ClipSpec(
        index=0,
        attempt=0,
        stream="plan",
        video=0,
        uri="",
        start_s=0.0,
        frames=run.data.frames,
        fps=run.data.fps,
        window=Window(size_px=run.data.size_px, scale=(1.0, 1.0), aspect=(1.0, 1.0), seed=-1),
        pixels=run.data.pixels,
        flip=False,
        mask_seed=0,
        view_seed=0,
    )
    steps = range(first, first + run.train.steps, -(-run.train.steps // draws))
    clips = run.micro_batch if is_padded(run.masks) else 1
    specs = [[replace(sample, mask_seed=step * clips + i) for i in range(clips)] for step in steps]
    splits = [splits_for(run, step=step, specs=each) for step, each in zip(steps, specs, strict=True)]
    return [[(split.context.shape[1], split.target.shape[1]) for split in each] for each in splits]


def figures_of(run: RunConfig, found: RunBudget) -> dict[str, object]:
    """Figures of the run; of one with several phases or streams those that all have in common, and each one's own."""
    if len(found.parts) == 1:
        return figures(run, found.parts[0].budget)
    largest = figures(found.largest.stream.run, found.largest.budget)
    shared = ("ranks", "parameters", "gpu", "mfu", "memory_bytes", "engine", "fits", "checkpoint_bytes")
    return {key: largest[key] for key in shared} | {
        "steps": run.steps,
        "samples": run.samples,
        "hours": found.hours,
        "gpu_hours": found.hours * run.ranks,
        "cost": found.cost,
        "phases": [
            {
                "name": phase.phase.name,
                "steps": phase.phase.stop - phase.phase.first,
                "clips_per_s": phase.clips_per_s,
                "flops_per_clip": phase.flops,
                "decode_cores": phase.decode_cores,
                "feed_bytes_per_s": phase.clip_bytes * phase.clips_per_s,
                "hours": phase.hours,
                "streams": [
                    {"name": part.stream.name, "share": part.share} | _own(figures(part.stream.run, part.budget))
                    for part in phase.parts
                ],
            }
            for phase in found.phases
        ],
    }


def _own(whole: dict[str, object]) -> dict[str, object]:
    """What is a stream's own of its figures."""
    kept = ("grid", "tokens", "micro_batch", "masks", "masks_drawn_steps", "flops_per_clip", "memory_bytes", "fits")
    return {key: whole[key] for key in (*kept, "clips_per_core_s", "clip_bytes")}


def figures(run: RunConfig, found: Budget) -> dict[str, object]:
    """All figures under plain names, for a program to read."""
    from rayjepa.masks import names

    return {
        "grid": list(run.grid),
        "tokens": math.prod(run.grid),
        "ranks": run.ranks,
        "micro_batch": run.micro_batch,
        "parameters": {"encoder": found.encoder, "predictor": found.predictor, "target": found.encoder},
        "masks": [
            {"name": name, "context": context, "target": target}
            for name, (context, target) in zip(names(run.masks), found.counts, strict=True)
        ],
        "masks_drawn_steps": found.draws,
        "flops_per_clip": asdict(found.flops) | {"model": found.flops.model, "hardware": found.hardware_flops},
        "gpu": asdict(found.gpu),
        "mfu": found.mfu,
        "memory_bytes": {
            engine: asdict(memory) | {"state": memory.state, "peak": memory.peak}
            for engine, memory in found.memory.items()
        },
        "engine": found.chosen,
        "fits": found.fits,
        "clips_per_s": found.clips_per_s,
        "decode_cores": found.clips_per_s / found.clips_per_core_s,
        "clips_per_core_s": found.clips_per_core_s,
        "clip_bytes": found.clip_bytes,
        "feed_bytes_per_s": found.clip_bytes * found.clips_per_s,
        "checkpoint_bytes": found.checkpoint_bytes,
        "steps": run.train.steps,
        "samples": run.samples,
        "hours": found.hours,
        "gpu_hours": found.hours * run.ranks,
        "cost": found.cost,
    }

"""The verb `plan`: what a run will need, as a page of figures; nothing is started."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rayjepa.config import RunConfig, resolve
from rayjepa.train.budget import Budget, budget, gpu_named
from rayjepa.train.footprint import Counts

DRAWS = 200
"""Steps whose masks are drawn: the mean context of 16 x 256 px is then known to 1 % (its spread is a sixth)."""


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
    from rayjepa.model import sizes

    encoder, predictor = sizes(run)
    found = budget(
        run,
        encoder=encoder,
        predictor=predictor,
        drawn=drawn_counts(run),
        gpu=card,
        mfu=mfu,
        price=price,
        clips_per_core_s=clips_per_core,
    )
    console = Console(width=None if Console().is_terminal else 110, highlight=False)
    show(console, run, found)
    if out is not None:
        out.write_text(json.dumps(figures(run, found), indent=1))
        console.print(f"wrote {out}")
    return 0


def drawn_counts(run: RunConfig) -> list[Counts]:
    """Context and target tokens of each mask type in steps of the run, spread over all of it.

    Counts are a function of (seed, step), the same for every sample of a step, so one made-up sample shows them.
    """
    from rayjepa.data.clip import ClipSpec, Window
    from rayjepa.masks import splits_for

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
    steps = range(0, run.train.steps, -(-run.train.steps // DRAWS))
    splits = [splits_for(run, step=step, specs=[sample]) for step in steps]
    return [[(split.context.shape[1], split.target.shape[1]) for split in each] for each in splits]


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

"""Does it learn? A small run over several seeds, its probes beside a random encoder's and a collapsing twin's.

The twin has neither stop-gradient nor average: its target is the encoder itself, through which gradients flow, so that
to make all features equal is the shortest way to a loss of 0. No knob of a run does that; it lives here alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rayjepa.bench.truth import Truth, truth_of
from rayjepa.config import RunConfig
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec
from rayjepa.data.decoder import Decoder
from rayjepa.data.manifest import Manifest
from rayjepa.data.tape import Tape
from rayjepa.health import clip_features, examine, grid_features, random_target
from rayjepa.health.probe import Parts, Probe, Probes, parts_by_video
from rayjepa.masks import Split
from rayjepa.model import Prediction, Target, build
from rayjepa.train.engine import autocast, to_device
from rayjepa.train.loop import train
from rayjepa.train.meter import Metrics
from rayjepa.train.plain import PlainEngine

Kind = Literal["jepa", "twin", "random"]
"""The run as configured, the twin without stop-gradient and average, or an encoder that was never trained."""
CELLS = 3
"""Parts of the frame across and down in the pool `grid`."""
POOLS = ("clip", "slots", "grid")
"""What a probe sees: one mean over all tokens; one for each time slot, side by side; or one for each part of the frame
in each slot. Rotary positions are relative, so that a mean over the frame says little of where, and so of how fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One encoder of one seed."""

    kind: Kind
    seed: int
    probes: dict[str, Probe]
    """By label and pool, such as velocity/clip."""
    gauges: dict[str, float]
    """RankMe and spread of the same features as the probes'."""
    health: list[Metrics]
    """RankMe and spread on the way, on fewer clips, with `step`."""
    losses: list[Metrics]
    """Metrics of the loop's readings, with `step`."""


@dataclass(frozen=True, slots=True)
class Exam:
    """Held-out clips, the same for all seeds, and what is true of them."""

    clips: tuple[ClipBatch, ...]
    truth: Truth
    parts: Parts

    def gauges(self, target: Target, run: RunConfig) -> dict[str, float]:
        """RankMe and spread on the first health.clips of them, as a run's health lines have it."""
        wanted = max(run.health.clips, 2 * run.model.width)
        few = self.clips[: -(-wanted // run.health.batch)]
        return examine(clip_features(target, few, run, device="cpu"))

    def trial(self, target: Target, run: RunConfig, kind: Kind, **lines: list[Metrics]) -> Trial:
        """All probes of `target`."""
        whole, grid = (grid_features(target, self.clips, run, cells=n, device="cpu") for n in (1, CELLS))
        seen = {"clip": whole.mean(dim=1).flatten(1), "slots": whole.flatten(1), "grid": grid.flatten(1)}
        scores: dict[str, Probe] = {}
        for pool, features in seen.items():
            probes = Probes(features, self.parts)
            scores[f"velocity/{pool}"] = probes.regress(self.truth.velocity)
            scores[f"position/{pool}"] = probes.regress(self.truth.position)
            scores[f"identity/{pool}"] = probes.classify(self.truth.identity)
            scores[f"colour/{pool}"] = probes.classify(self.truth.colour)
        gauges = examine(seen["clip"])
        health, losses = lines.get("health", []), lines.get("losses", [])
        return Trial(kind=kind, seed=run.seed, probes=scores, gauges=gauges, health=health, losses=losses)


class TwinEngine(PlainEngine):
    """The plain engine with the encoder as its own target, and gradients through it; give it momentum 0."""

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        index: Int64[Tensor, " B"] | None = None,
        *,
        stream: int = 0,
    ) -> Prediction:
        """Predictions beside features that follow the same gradient."""
        encoder = self.jepa.encoder
        with autocast(self.run, self.device):
            levels = encoder(*encoder.tokenise(views))
            return self.jepa(views, to_device(splits, self.device), levels, index, stream=stream)


def study(
    run: RunConfig,
    videos: Manifest,
    *,
    seeds: Sequence[int],
    bank: int,
    probed: int,
    twin_steps: int,
    say: Callable[[str], None],
) -> list[Trial]:
    """A random encoder, a run and its twin for each of `seeds`, in this process.

    `bank` clips are decoded once for each seed and come again in another order, masked anew; `probed` held-out clips
    are the same for all. The twin has the run's schedules, and is stopped after `twin_steps`.
    Raises:  ValueError if there are no held-out videos, or they have not the labels of synthetic ones.
    """
    torch.set_num_threads(run.train.threads)
    exam = held_out(run, videos, probed)
    say(f"{len(exam.truth.videos)} held-out clips of {len(set(exam.truth.videos))} videos")
    trials: list[Trial] = []

    def note(trial: Trial) -> None:
        trials.append(trial)
        scores = ", ".join(f"{name} {probe.score:.3f}" for name, probe in trial.probes.items())
        say(f"seed {trial.seed}, {trial.kind}: {scores}")

    for seed in seeds:
        own = dataclasses.replace(run, seed=seed)
        note(exam.trial(random_target(own), own, "random"))
        clips = Bank(own, videos, bank)
        note(trained(own, clips, exam, kind="jepa", steps=run.train.steps, say=say))
        note(trained(own, clips, exam, kind="twin", steps=twin_steps, say=say))
    return trials


def held_out(run: RunConfig, videos: Manifest, count: int) -> Exam:
    """The clips that gauges and probes look at, decoded."""
    tape = Tape(run, videos)
    if tape.held_out_is_train:
        raise ValueError("no video is held out, and probes are tested on such; raise data.holdout")
    specs = tape.held_out(count)
    truth = truth_of(videos, specs)
    parts = parts_by_video(truth.videos)
    with Decoder(run.data) as decoder:
        clips = tuple(_decoded(decoder, specs, size=run.health.batch))
    return Exam(clips, truth, parts)


def trained(
    run: RunConfig, clips: "Bank", exam: Exam, *, kind: Literal["jepa", "twin"], steps: int, say: Callable[[str], None]
) -> Trial:
    """The first `steps` of a run, through the loop that every run goes through."""
    engine_of = PlainEngine
    if kind == "twin":
        run = dataclasses.replace(run, ema=dataclasses.replace(run.ema, momentum=0.0, final_momentum=None))
        engine_of = TwinEngine
    engine = engine_of(run, build(run), device=torch.device("cpu"))
    health: list[Metrics] = []
    losses: list[Metrics] = []
    now = 0

    def begin(step: int) -> None:
        nonlocal now
        now = step

    def look(finished: int) -> Mapping[str, Any]:
        health.append({"step": finished, **exam.gauges(engine.target, run)})
        last = health[-1]
        loss = f", loss {losses[-1]['loss/latent']:.3f}" if losses else ""
        say(
            f"seed {run.seed}, {kind}, step {finished}: RankMe {last['collapse/rankme']:.2f}, "
            f"std {last['collapse/std_mean']:.3g}{loss}"
        )
        return last

    def report(metrics: Metrics, folder: Path | None) -> None:
        losses.append({"step": metrics["step"] + 1, **{k: v for k, v in metrics.items() if k.startswith("loss/")}})

    try:
        train(
            engine,
            clips.batches(run),
            run,
            start=0,
            report=report,
            health=look,
            begin=begin,
            stop=lambda: now + 1 >= steps,
        )
        if health[-1]["step"] != now + 1:
            look(now + 1)
        return exam.trial(engine.target, run, kind, health=health, losses=losses)
    finally:
        engine.close()


class Bank:
    """The first clips of a tape, decoded once, that stand in for all its later ones too.

    Sample i shows the pixels of one of them, each once before any comes again, and has its own mask.
    """

    def __init__(self, run: RunConfig, videos: Manifest, count: int) -> None:
        self.tape = Tape(run, videos)
        specs = [self.tape.spec(i) for i in range(min(count, run.samples))]
        with Decoder(run.data) as decoder:
            parts = list(_decoded(decoder, specs, size=run.train.clips))
        self.pixels = torch.cat([part.pixels for part in parts])
        self.layout = torch.cat([part.layout for part in parts])
        self.specs = tuple(spec for part in parts for spec in part.specs)

    def batches(self, run: RunConfig) -> Iterator[ClipBatch]:
        """The micro-batches of all steps, as the stream would give them to a run of one process."""
        for first in range(0, run.samples, run.micro_batch):
            ids = range(first, first + run.micro_batch)
            rows = [self._row(i) for i in ids]
            seeds = [self.tape.spec(i).mask_seed for i in ids]
            yield ClipBatch(
                index=torch.tensor(ids),
                pixels=self.pixels[rows],
                layout=self.layout[rows],
                specs=tuple(
                    dataclasses.replace(self.specs[row], index=i, mask_seed=seed)
                    for i, row, seed in zip(ids, rows, seeds, strict=True)
                ),
            )

    def _row(self, sample: int) -> int:
        turn, place = divmod(sample, len(self.specs))
        return place if turn == 0 else int(_order(len(self.specs), turn)[place])


@lru_cache(maxsize=2)
def _order(rows: int, turn: int) -> Int64[Tensor, " rows"]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(turn))


def _decoded(decoder: Decoder, specs: Sequence[ClipSpec], *, size: int) -> Iterator[ClipBatch]:
    """Clips of `specs` in batches of `size`; they are videos that we made, so that none may fail."""

    def no_substitute(index: int, attempt: int) -> ClipSpec:
        raise RuntimeError(f"sample {index}: a synthetic video cannot be decoded; delete its folder in data.cache")

    for at in range(0, len(specs), size):
        decoded = decoder.clips(specs[at : at + size], no_substitute)
        yield ClipBatch(
            index=torch.tensor([spec.index for spec in decoded.specs]),
            pixels=torch.as_tensor(decoded.pixels),
            layout=torch.as_tensor(decoded.layout),
            specs=tuple(decoded.specs),
        )

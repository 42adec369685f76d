"""A training step of ours, taken apart: the engine of a run and what the loop does around it, on made clips."""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rayjepa.bench.clock import REST, Clock
from rayjepa.config import RunConfig
from rayjepa.config.parts import phases_of, streams_of
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec, Layout, Window
from rayjepa.masks import Split, splits_for
from rayjepa.objective import score
from rayjepa.train.budget import flops
from rayjepa.train.engine import make_engine, to_device
from rayjepa.train.footprint import Counts
from rayjepa.train.schedules import clip_norm, learning_rate, momentum, weight_decay
from rayjepa.views import to_views

Inputs = Sequence[tuple[Tensor, tuple[Split, ...]]]
"""Views and masks of each micro-batch of a step, on the device."""
INPUTS = ("views", "masks")
"""Parts of a step that make its inputs."""
PARTS: tuple[str, ...] = (
    *INPUTS,
    "target",
    "encoder",
    "predictor",
    "loss",
    "backward",
    "guard",
    "optimizer",
    "ema",
    REST,
)
READS = frozenset(("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"))
"""What makes the host wait for a tensor's values, as PyTorch's overrides call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One step, timed."""

    parts: dict[str, float]
    """Seconds by part; they sum to the step."""
    cpu: dict[str, float]
    """CPU seconds of the process by part, all threads: other programs change them less than the time of day."""
    loss: float
    flops: float
    """Of the model, for the tokens of this very step."""


def rank_share(run: RunConfig) -> RunConfig:
    """One rank's share of a step as a run of its own in this process: the first phase, and of it the first stream."""
    run = streams_of(phases_of(run)[0].run)[0].run
    return dataclasses.replace(
        run,
        train=dataclasses.replace(run.train, clips=run.micro_batch * run.train.accumulation),
        cluster=dataclasses.replace(run.cluster, workers=0),
        profile=dataclasses.replace(run.profile, steps=None),
    )


class Ours:
    """Steps of `run`, one rank's share, each on clips of its own masks and views; their bytes are noise."""

    def __init__(self, run: RunConfig, *, device: torch.device, clock: Clock) -> None:
        self.run, self.device, self.clock = run, device, clock
        self.engine: Any = make_engine(run, device=device)
        noise = torch.Generator().manual_seed(run.seed)
        shape = (run.micro_batch, _spec(run, 0).nbytes)
        self._pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
        self._watch()

    def take(self, step: int) -> Taken:
        """One step, from the clips' bytes to the moved target."""
        clock, batches = self.clock, [self._clips(step, micro) for micro in range(self.run.train.accumulation)]
        counts: list[Counts] = []
        total = torch.zeros((), device=self.device)
        clock.start()
        for clips in batches:
            views, splits = self._inputs(clips, step)
            counts.append(token_counts(splits))
            total += self._learn(views, splits, clips.index)
        taken = self._update(step)
        parts, cpu = clock.stop()
        if taken.refused is not None:
            raise RuntimeError(f"step {step} of the benchmark was refused: {taken.refused}; set optim.lr lower")
        return Taken(parts=parts, cpu=cpu, loss=float(total), flops=self.flops(counts))

    def inputs(self, step: int) -> tuple[Inputs, list[Counts]]:
        """Views and masks of each micro-batch of `step` on the device, and their tokens."""
        made = [self._inputs(self._clips(step, micro), step) for micro in range(self.run.train.accumulation)]
        return [(views, to_device(splits, self.device)) for views, splits in made], [
            token_counts(splits) for _, splits in made
        ]

    def rates(self, step: int) -> dict[str, Any]:
        """What the schedules say of `step`."""
        run = self.run
        return {
            "lr": learning_rate(run, step),
            "weight_decay": weight_decay(run, step),
            "momentum": momentum(run, step),
            "clip": clip_norm(run, step),
        }

    def flops(self, counts: Sequence[Counts]) -> float:
        """Of the model, in a step with these tokens in its micro-batches."""
        return sum(self.run.micro_batch * flops(self.run, each).model for each in counts)

    def syncs(self, step: int) -> int:
        """Times that the host waits for the device in `step`, but for its views and masks; the step is taken."""
        clips = [self._clips(step, micro) for micro in range(self.run.train.accumulation)]
        made = [(*self._inputs(each, step), each.index) for each in clips]
        with warnings.catch_warnings(record=True) as said, _Reads() as reads:
            warnings.simplefilter("always")
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            try:
                for views, splits, index in made:
                    self._learn(views, splits, index)
                self._update(step)
            finally:
                if self.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchronizing CUDA operation" in str(warning.message) for warning in said)
        return waits if self.device.type == "cuda" else reads.count

    def _inputs(self, clips: ClipBatch, step: int) -> tuple[Tensor, tuple[Split, ...]]:
        with self.clock.part("views"):
            views = to_views(clips, self.run, device=self.device)
        with self.clock.part("masks"):
            return views, splits_for(self.run, step=step, specs=clips.specs)

    def _learn(self, views: Tensor, splits: tuple[Split, ...], index: Tensor) -> Tensor:
        """Forward and backward; the loss, on the device."""
        prediction = self.engine.forward(views, splits, index)
        with self.clock.part("loss"):
            loss = score(prediction, self.run.objective).loss / self.run.train.accumulation
        with self.clock.part("backward"):
            self.engine.backward(loss)
        return loss.detach()

    def _update(self, step: int) -> Any:
        with self.clock.part("guard"):
            return self.engine.step(**self.rates(step))

    def _watch(self) -> None:
        """Have the clock told where parts of the engine's own begin and end."""
        clock, jepa, target = self.clock, self.engine.jepa, self.engine.target
        clock.watch(target, "target")
        clock.watch(jepa.predictor, "predictor")
        clock.watch(jepa.encoder, "encoder")
        for name, module in jepa.encoder.named_children():
            if name.startswith("patch_embed"):
                clock.watch(module, "encoder")
        target.update_ = clock.watched(target.update_, "ema")
        optimizer = self.engine._client if self.run.train.engine == "zero" else self.engine.optimizer
        optimizer.register_step_pre_hook(lambda *_: clock.enter("optimizer"))
        optimizer.register_step_post_hook(lambda *_: clock.leave())

    def _clips(self, step: int, micro: int) -> ClipBatch:
        size = self.run.micro_batch
        first = (step * self.run.train.accumulation + micro) * size
        specs = tuple(_spec(self.run, index) for index in range(first, first + size))
        layout = torch.tensor([Layout(0, 0, *spec.window.canvas, 0) for spec in specs], dtype=torch.int32)
        index = torch.arange(first, first + size)
        return ClipBatch(index=index, pixels=self._pixels, layout=layout, specs=specs)


class _Reads(TorchFunctionMode):
    """Counts the calls of READS."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


def token_counts(splits: Sequence[Split]) -> Counts:
    """Tokens of context and target of each mask; of rows that are filled up, the mean of those that count."""

    def counted(ids: Tensor, valid: Tensor | None) -> int:
        return ids.shape[1] if valid is None else round(float(valid.sum()) / len(ids))

    return [(counted(s.context, s.context_valid), counted(s.target, s.target_valid)) for s in splits]


def _spec(run: RunConfig, index: int) -> ClipSpec:
    data, whole = run.data, run.data.window == "whole"
    short, long = data.canvas
    window = Window(
        kind=data.window,
        size_px=short,
        long_px=long if whole else None,
        scale=data.window_scale,
        aspect=data.window_aspect,
        seed=index,
    )
    return ClipSpec(
        index=index,
        attempt=0,
        stream="noise",
        video=index,
        uri=f"noise/{index}",
        start_s=0.0,
        frames=data.frames,
        fps=data.fps,
        window=window,
        pixels=data.pixels,
        flip=index % 2 == 1,
        mask_seed=index,
        view_seed=index,
    )

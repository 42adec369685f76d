"""Knobs of the optimizer, the run's bookkeeping and the cluster."""

import re
from typing import Literal

from rayjepa.config.sections import need, section


@section
class OptimConfig:
    lr: float = 5.25e-4
    """Peak learning rate of AdamW."""
    start_lr: float = 1e-4
    """Learning rate at the first step of the warm-up."""
    final_lr: float = 5.25e-4
    """Learning rate at the end of the horizon (equal to optim.lr: constant)."""
    warmup_steps: int = 12000
    """Steps of linear warm-up."""
    shape: Literal["cosine", "linear"] = "cosine"
    """How the learning rate goes from optim.lr to optim.final_lr after the warm-up."""
    horizon: float = 1.0
    """Length of all schedules over that of the run; above 1 they are cut off before their end (V-JEPA: 1.25)."""
    weight_decay: float = 0.04
    """Weight decay of matrices at the first step; biases and norms have none."""
    final_weight_decay: float | None = None
    """Weight decay at the end of the horizon, reached by a half cosine; none: constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip: float | None = None
    """Gradient norm above which gradients are scaled down; none: never."""
    clip_parts: Literal["joint", "separate"] = "joint"
    """What optim.clip bounds: the norm of all gradients, or the encoder's and the predictor's each (V-JEPA 1)."""
    clip_from_step: int = 0
    """First step at which gradients are clipped (V-JEPA 1: the end of the warm-up)."""
    max_norm: float = float("inf")
    """Gradient norm above which the step is refused."""
    max_refused: int = 0
    """Refused steps (loss or gradient not finite, or above optim.max_norm) to pass over in a phase, then it stops."""

    def __post_init__(self) -> None:
        for key in ("lr", "eps", "max_norm"):
            need(getattr(self, key) > 0, f"optim.{key}={getattr(self, key)} must be above 0")
        for key in ("start_lr", "final_lr", "weight_decay", "warmup_steps", "max_refused", "clip_from_step"):
            need(getattr(self, key) >= 0, f"optim.{key}={getattr(self, key)} must be at least 0")
        need(all(0 <= b < 1 for b in self.betas), f"optim.betas={list(self.betas)} must each be in [0, 1)")
        decay = self.final_weight_decay
        need(decay is None or decay >= 0, f"optim.final_weight_decay={decay} must be at least 0, or none")
        need(self.horizon >= 1, f"optim.horizon={self.horizon} must be at least 1")
        need(self.clip is None or self.clip > 0, f"optim.clip={self.clip} must be above 0, or none")


@section
class EmaConfig:
    momentum: float = 0.99925
    """Share of the target kept at each step, in [0, 1]; 1 freezes the target."""
    final_momentum: float | None = None
    """Momentum at the end of optim.horizon, reached linearly; none: constant."""

    def __post_init__(self) -> None:
        need(0 <= self.momentum <= 1, f"ema.momentum={self.momentum} must be in [0, 1]")
        need(
            self.final_momentum is None or 0 <= self.final_momentum <= 1,
            f"ema.final_momentum={self.final_momentum} must be in [0, 1], or none",
        )


@section
class TrainConfig:
    steps: int = 240000
    """Optimizer steps of the run; of one with phases, of the first."""
    clips: int = 3072
    """Clips per step over all workers (global batch); a multiple of workers x train.accumulation."""
    accumulation: int = 1
    """Micro-batches that each worker adds up before a step."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Compute precision; bf16 is autocast over fp32 parameters. The target is always fp32."""
    engine: Literal["zero", "plain"] = "zero"
    """DeepSpeed ZeRO, or plain PyTorch (data-parallel above one worker)."""
    checkpoint_blocks: bool = False
    """Recompute each block's activations in backward: less memory, about a third more compute."""
    compile_blocks: bool = False
    """Compile each transformer block by torch.compile: faster on GPUs, a minute longer to start. Not at stage 3."""
    threads: int = 1
    """CPU threads of PyTorch in each worker."""

    def __post_init__(self) -> None:
        for key in ("steps", "clips", "accumulation", "threads"):
            need(getattr(self, key) >= 1, f"train.{key}={getattr(self, key)} must be at least 1")


@section
class ZeroConfig:
    stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage: 0 replicates; 1 shards the optimizer, 2 the gradients too, 3 the parameters and the target too."""


@section
class CheckpointConfig:
    every_steps: int = 300
    """Steps between checkpoints; the last step of a phase always writes one."""
    keep: int = 3
    """Checkpoint folders kept, newest first."""

    def __post_init__(self) -> None:
        need(self.every_steps >= 1, f"checkpoint.every_steps={self.every_steps} must be at least 1")
        need(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1")


@section
class HealthConfig:
    every_steps: int = 300
    """Steps between examinations of the target on held-out clips; a phase's first and last step always have one."""
    clips: int = 256
    """Held-out clips examined; raised to 2 x model.width, fewer if the manifest has fewer."""
    batch: int = 16
    """Held-out clips in one forward pass."""

    def __post_init__(self) -> None:
        for key in ("every_steps", "clips", "batch"):
            need(getattr(self, key) >= 1, f"health.{key}={getattr(self, key)} must be at least 1")


@section
class ReportConfig:
    every_steps: int = 10
    """Steps between readings of metrics off the device, and of lines in metrics/ and TensorBoard."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""

    def __post_init__(self) -> None:
        need(self.every_steps >= 1, f"report.every_steps={self.every_steps} must be at least 1")


@section
class ProfileConfig:
    steps: str | None = None
    """Steps A to B - 1 to trace on rank 0, as text A:B (in YAML in quotes), counted from 0; none: no trace."""

    def __post_init__(self) -> None:
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", self.steps or "0:1")
        need(
            match is not None and int(match[1]) < int(match[2]),
            f"profile.steps={self.steps} must be A:B with whole numbers 0 <= A < B, such as 10:20",
        )

    @property
    def span(self) -> tuple[int, int] | None:
        """First step to trace, and the step after the last."""
        if self.steps is None:
            return None
        first, stop = self.steps.split(":")
        return int(first), int(stop)


_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_WORD}={_WORD}")
"""A node's label: key, with a domain before a slash if it is somebody's, and value."""


@section
class ClusterConfig:
    address: str | None = None
    """Ray cluster to attach to; none: RAY_ADDRESS if set, else an embedded cluster in its own temp folder."""
    workers: int = 2
    """Train workers (ranks); 0: train in this process, without Ray."""
    decoders: int = 2
    """Decode actors, each with one child process running FFmpeg."""
    max_decoders: int | None = None
    """Decode actors that there may be while clips are wanted faster than decoded; none: always cluster.decoders."""
    cpus_per_worker: float = 1.0
    """Logical CPUs reserved by each train worker."""
    gpus: bool | None = None
    """One GPU per worker; none: if this machine (embedded) or the cluster has as many, or may bring them."""
    train_label: str | None = None
    """Label KEY=VALUE of the nodes that train, such as rayjepa.io/role=train; none: any. Not for embedded clusters."""
    decode_label: str | None = None
    """Label KEY=VALUE of the nodes that decode, so that they may be CPU-only and scale apart; none: any."""
    max_failures: int = 3
    """Restarts of the worker group in a phase before the run fails; -1: no limit."""
    object_store_gib: float = 1.0
    """Object store of the embedded cluster in GiB."""
    prefetch: int | None = None
    """Micro-batches that a worker holds ready; none: as many as a share of the object store holds, up to 64."""
    block: int | None = None
    """Micro-batches of one worker that travel together; none: as many as make a block of 4 MiB, up to 16."""

    @property
    def most_decoders(self) -> int:
        """Decode actors that there may be at once."""
        return self.max_decoders or self.decoders

    def __post_init__(self) -> None:
        need(self.workers >= 0, f"cluster.workers={self.workers} must be at least 0 (0: no Ray)")
        need(self.decoders >= 1, f"cluster.decoders={self.decoders} must be at least 1")
        need(self.cpus_per_worker > 0, f"cluster.cpus_per_worker={self.cpus_per_worker} must be above 0")
        for key, label in (("train_label", self.train_label), ("decode_label", self.decode_label)):
            need(
                label is None or LABEL.fullmatch(label) is not None,
                f"cluster.{key}={label} must be a label as Ray takes it, KEY=VALUE such as rayjepa.io/role=train",
            )
        need(self.max_failures >= -1, f"cluster.max_failures={self.max_failures} must be at least -1")
        need(self.object_store_gib >= 0.1, f"cluster.object_store_gib={self.object_store_gib} must be at least 0.1")
        need(
            self.max_decoders is None or self.max_decoders >= self.decoders,
            f"cluster.max_decoders={self.max_decoders} must be at least cluster.decoders={self.decoders}, or none",
        )
        for key in ("prefetch", "block"):
            value = getattr(self, key)
            need(value is None or value >= 1, f"cluster.{key}={value} must be at least 1, or none")

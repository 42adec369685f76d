"""Every knob of a run: frozen sections, validated where the fields are.

The string under a field is its help text; `rayjepa pretrain --help` prints it, so it states unit and range.
"""

from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

section: Any = dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=True)
)


def _need(claim: bool, message: str) -> None:
    if not claim:
        raise ValueError(message)


def _ordered(pair: tuple[float, float], key: str, low: float, high: float) -> None:
    _need(low < pair[0] <= pair[1] <= high, f"{key}={list(pair)} must be two rising numbers in ({low}, {high}]")


@section
class DataConfig:
    videos: str | None = None
    """Folder, glob, list (.txt, one path a line) or manifest (.parquet); none: synthetic, made once in data.cache."""
    cache: str = "~/.cache/rayjepa"
    """Folder for the synthetic videos."""
    synthetic_videos: int = 320
    """Number of synthetic videos, if data.videos is none."""
    frames: int = 16
    """Frames per clip, after resampling to data.fps; a multiple of model.tubelet."""
    fps: float = 4.0
    """Frames per second of video time at which a clip is sampled."""
    size_px: int = 256
    """Side of the square clip in pixels; even, and a multiple of model.patch_px."""
    window_scale: tuple[float, float] = (0.3, 1.0)
    """Random-resized crop: share of the frame's area, lowest and highest, in (0, 1]."""
    window_aspect: tuple[float, float] = (0.75, 1.35)
    """Random-resized crop: width over height, lowest and highest, drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip of the whole clip, in [0, 1]."""
    pixels: Literal["i420", "rgb"] = "i420"
    """What the decoder ships: planar YUV 4:2:0 (half the bytes) or packed RGB."""
    short_videos: Literal["repeat", "skip"] = "repeat"
    """A video shorter than a clip: repeat its last frame, or never draw it."""
    holdout: float = 0.1
    """Share of videos (by hash of uri) for health and probes, never trained; in [0, 1). Under 20 videos all train."""
    retries: int = 2
    """Further tries of a clip after a read error, a deadline or a dead decoder, each in a fresh child process."""
    substitutes: int = 8
    """Other videos tried in place of one that cannot be decoded, before the run stops."""
    max_bad_share: float = 0.2
    """Share of quarantined samples above which the run stops with a summary; in [0, 1]."""
    decode_cpu_s: float = 20.0
    """CPU seconds that one clip may use in the decoder; tight, since load does not change it."""
    decode_wall_s: float = 120.0
    """Wall-clock seconds that one clip may take in the decoder; loose, so that load does not change the data."""

    def __post_init__(self) -> None:
        _need(self.synthetic_videos >= 1, f"data.synthetic_videos={self.synthetic_videos} must be at least 1")
        _need(self.frames >= 1, f"data.frames={self.frames} must be at least 1")
        _need(0 < self.fps <= 1000, f"data.fps={self.fps} must be in (0, 1000]")
        _need(self.size_px >= 2 and self.size_px % 2 == 0, f"data.size_px={self.size_px} must be even and at least 2")
        _ordered(self.window_scale, "data.window_scale", 0.0, 1.0)
        _ordered(self.window_aspect, "data.window_aspect", 0.0, 100.0)
        _need(0 <= self.flip <= 1, f"data.flip={self.flip} must be in [0, 1]")
        _need(0 <= self.holdout < 1, f"data.holdout={self.holdout} must be in [0, 1)")
        _need(0 <= self.max_bad_share <= 1, f"data.max_bad_share={self.max_bad_share} must be in [0, 1]")
        _need(self.retries >= 0, f"data.retries={self.retries} must be at least 0")
        _need(self.substitutes >= 1, f"data.substitutes={self.substitutes} must be at least 1")
        _need(self.decode_cpu_s > 0, f"data.decode_cpu_s={self.decode_cpu_s} must be above 0")
        _need(
            self.decode_wall_s >= self.decode_cpu_s,
            f"data.decode_wall_s={self.decode_wall_s} must be at least data.decode_cpu_s={self.decode_cpu_s}",
        )


@section
class ModelConfig:
    tubelet: int = 2
    """Frames per token."""
    patch_px: int = 16
    """Side of a token's square patch in pixels."""
    width: int = 1024
    """Encoder width D; a multiple of model.heads."""
    depth: int = 24
    """Encoder blocks."""
    heads: int = 16
    """Encoder attention heads; at least 6 channels each, for three rotary axes."""
    mlp_ratio: float = 4.0
    """Hidden width of an encoder block's MLP over its width."""
    rope_pairing: Literal["interleaved", "tiled"] = "interleaved"
    """Rotary embedding: a true rotation of adjacent pairs, or the tiled angles of V-JEPA 2's published weights."""

    def __post_init__(self) -> None:
        for key in ("tubelet", "patch_px", "width", "depth", "heads"):
            _need(getattr(self, key) >= 1, f"model.{key}={getattr(self, key)} must be at least 1")
        _need(self.width % self.heads == 0, f"model.width={self.width} is not a multiple of model.heads={self.heads}")
        _need(
            self.width // self.heads >= 6,
            f"model.width={self.width} over model.heads={self.heads} leaves fewer than 6 channels a head",
        )
        _need(self.mlp_ratio > 0, f"model.mlp_ratio={self.mlp_ratio} must be above 0")


@section
class PredictorConfig:
    width: int = 384
    """Predictor width; a multiple of predictor.heads."""
    depth: int = 12
    """Predictor blocks."""
    heads: int = 12
    """Predictor attention heads; at least 6 channels each."""
    mlp_ratio: float = 4.0
    """Hidden width of a predictor block's MLP over its width."""

    def __post_init__(self) -> None:
        for key in ("width", "depth", "heads"):
            _need(getattr(self, key) >= 1, f"predictor.{key}={getattr(self, key)} must be at least 1")
        _need(
            self.width % self.heads == 0,
            f"predictor.width={self.width} is not a multiple of predictor.heads={self.heads}",
        )
        _need(
            self.width // self.heads >= 6,
            f"predictor.width={self.width} over predictor.heads={self.heads} leaves fewer than 6 channels a head",
        )
        _need(self.mlp_ratio > 0, f"predictor.mlp_ratio={self.mlp_ratio} must be above 0")


@section
class BlockConfig:
    blocks: int = 8
    """Blocks hidden in each clip."""
    spatial: tuple[float, float] = (0.15, 0.15)
    """Share of the frame's tokens that one block covers, lowest and highest, in (0, 1]."""
    temporal: tuple[float, float] = (1.0, 1.0)
    """Share of the clip's time slots that one block covers, lowest and highest, in (0, 1]."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Height over width of a block, lowest and highest, drawn uniformly."""

    def __post_init__(self) -> None:
        _need(self.blocks >= 1, f"masks.multiblock[].blocks={self.blocks} must be at least 1")
        _ordered(self.spatial, "masks.multiblock[].spatial", 0.0, 1.0)
        _ordered(self.temporal, "masks.multiblock[].temporal", 0.0, 1.0)
        _ordered(self.aspect, "masks.multiblock[].aspect", 0.0, 100.0)


@section
class MaskConfig:
    kind: Literal["multiblock", "tube", "random"] = "multiblock"
    """V-JEPA's multi-block masks, cells hidden through all time, or single tokens; the last two obey masks.ratio."""
    ratio: float = 0.75
    """Hidden share 1 - C/N of the tokens for kinds tube and random, in (0, 1)."""
    predict: float | None = None
    """Predicted share M/N of the tokens for kinds tube and random, at most masks.ratio; none: all that is hidden."""
    multiblock: tuple[BlockConfig, ...] = (BlockConfig(), BlockConfig(blocks=2, spatial=(0.7, 0.7)))
    """Mask types of kind multiblock; each is one prediction task per clip."""
    group_size: int = 24
    """Clips whose smallest context and target set the token counts of a step (V-JEPA: clips per GPU)."""

    def __post_init__(self) -> None:
        _need(0 < self.ratio < 1, f"masks.ratio={self.ratio} must be in (0, 1)")
        if self.predict is not None:
            _need(
                0 < self.predict <= self.ratio, f"masks.predict={self.predict} must be in (0, masks.ratio={self.ratio}]"
            )
        _need(len(self.multiblock) >= 1, "masks.multiblock is empty; it needs at least one mask type")
        _need(self.group_size >= 1, f"masks.group_size={self.group_size} must be at least 1")


@section
class ObjectiveConfig:
    kind: Literal["l1", "l2", "smooth_l1"] = "l1"
    """Distance between prediction and layer-normed target, mean over features."""


@section
class OptimConfig:
    lr: float = 5.25e-4
    """Peak learning rate of AdamW."""
    start_lr: float = 1e-4
    """Learning rate at the first step of the warm-up."""
    final_lr: float = 5.25e-4
    """Learning rate at the last step (cosine from optim.lr; equal to it: constant)."""
    warmup_steps: int = 12000
    """Steps of linear warm-up."""
    weight_decay: float = 0.04
    """Weight decay of matrices; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip: float | None = None
    """Gradient norm above which gradients are scaled down; none: never."""
    max_norm: float = float("inf")
    """Gradient norm above which the step is refused."""
    max_refused: int = 0
    """Refused steps (loss or gradient not finite, or norm above optim.max_norm) to pass over before the run stops."""

    def __post_init__(self) -> None:
        for key in ("lr", "eps", "max_norm"):
            _need(getattr(self, key) > 0, f"optim.{key}={getattr(self, key)} must be above 0")
        for key in ("start_lr", "final_lr", "weight_decay", "warmup_steps", "max_refused"):
            _need(getattr(self, key) >= 0, f"optim.{key}={getattr(self, key)} must be at least 0")
        _need(all(0 <= b < 1 for b in self.betas), f"optim.betas={list(self.betas)} must each be in [0, 1)")
        _need(self.clip is None or self.clip > 0, f"optim.clip={self.clip} must be above 0, or none")


@section
class EmaConfig:
    momentum: float = 0.99925
    """Share of the target kept at each step, in [0, 1]; 1 freezes the target."""
    final_momentum: float | None = None
    """Momentum at the last step, reached linearly; none: constant."""

    def __post_init__(self) -> None:
        _need(0 <= self.momentum <= 1, f"ema.momentum={self.momentum} must be in [0, 1]")
        _need(
            self.final_momentum is None or 0 <= self.final_momentum <= 1,
            f"ema.final_momentum={self.final_momentum} must be in [0, 1], or none",
        )


@section
class TrainConfig:
    steps: int = 240000
    """Optimizer steps of the run."""
    clips: int = 3072
    """Clips per step over all workers (global batch); a multiple of workers x train.accumulation."""
    accumulation: int = 1
    """Micro-batches that each worker adds up before a step."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Compute precision; bf16 is autocast over fp32 parameters. The target is always fp32."""
    engine: Literal["zero", "plain"] = "zero"
    """DeepSpeed ZeRO, or plain PyTorch (data-parallel above one worker)."""
    threads: int = 1
    """CPU threads of PyTorch in each worker."""

    def __post_init__(self) -> None:
        for key in ("steps", "clips", "accumulation", "threads"):
            _need(getattr(self, key) >= 1, f"train.{key}={getattr(self, key)} must be at least 1")


@section
class ZeroConfig:
    stage: Literal[0, 1, 2] = 1
    """ZeRO stage: 0 replicates, 1 shards the optimizer, 2 the gradients too."""


@section
class CheckpointConfig:
    every_steps: int = 300
    """Steps between checkpoints; the last step always writes one."""
    keep: int = 3
    """Checkpoint folders kept, newest first."""

    def __post_init__(self) -> None:
        _need(self.every_steps >= 1, f"checkpoint.every_steps={self.every_steps} must be at least 1")
        _need(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1")


@section
class HealthConfig:
    every_steps: int = 300
    """Steps between examinations of the target on held-out clips; the first and last step always have one."""
    clips: int = 256
    """Held-out clips examined; raised to 2 x model.width, fewer if the manifest has fewer."""
    batch: int = 16
    """Held-out clips in one forward pass."""

    def __post_init__(self) -> None:
        for key in ("every_steps", "clips", "batch"):
            _need(getattr(self, key) >= 1, f"health.{key}={getattr(self, key)} must be at least 1")


@section
class ReportConfig:
    every_steps: int = 10
    """Steps between readings of metrics off the device, and of lines in metrics/ and TensorBoard."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""

    def __post_init__(self) -> None:
        _need(self.every_steps >= 1, f"report.every_steps={self.every_steps} must be at least 1")


@section
class ClusterConfig:
    address: str | None = None
    """Ray cluster to attach to; none: RAY_ADDRESS if set, else an embedded cluster in its own temp folder."""
    workers: int = 2
    """Train workers (ranks); 0: train in this process, without Ray."""
    decoders: int = 2
    """Decode actors, each with one child process running FFmpeg."""
    cpus_per_worker: float = 1.0
    """Logical CPUs reserved by each train worker."""
    gpus: bool | None = None
    """One GPU per worker; none: if this machine (embedded) or the cluster has any."""
    max_failures: int = 3
    """Restarts of the worker group before the run fails; -1: no limit."""
    object_store_gib: float = 1.0
    """Object store of the embedded cluster in GiB."""
    prefetch: int = 2
    """Micro-batches that a worker holds ready."""

    def __post_init__(self) -> None:
        _need(self.workers >= 0, f"cluster.workers={self.workers} must be at least 0 (0: no Ray)")
        _need(self.decoders >= 1, f"cluster.decoders={self.decoders} must be at least 1")
        _need(self.cpus_per_worker > 0, f"cluster.cpus_per_worker={self.cpus_per_worker} must be above 0")
        _need(self.max_failures >= -1, f"cluster.max_failures={self.max_failures} must be at least -1")
        _need(self.object_store_gib >= 0.1, f"cluster.object_store_gib={self.object_store_gib} must be at least 0.1")
        _need(self.prefetch >= 1, f"cluster.prefetch={self.prefetch} must be at least 1")


@section
class RunConfig:
    name: str | None = None
    """Name of the run and of its folder; none: preset, date and time."""
    out: str = "runs"
    """Folder in which the run's folder is made."""
    seed: int = 0
    """Seed of the tape, the masks and the weights."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    predictor: PredictorConfig = PredictorConfig()
    masks: MaskConfig = MaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = TrainConfig()
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = ClusterConfig()

    def __post_init__(self) -> None:
        _need(self.seed >= 0, f"seed={self.seed} must be at least 0")
        frames, size, model = self.data.frames, self.data.size_px, self.model
        _need(frames % model.tubelet == 0, f"data.frames={frames} is not a multiple of model.tubelet={model.tubelet}")
        _need(size % model.patch_px == 0, f"data.size_px={size} is not a multiple of model.patch_px={model.patch_px}")
        ranks = max(self.cluster.workers, 1)
        shares = ranks * self.train.accumulation
        _need(
            self.train.clips % shares == 0,
            f"train.clips={self.train.clips} is not a multiple of {ranks} worker(s) (cluster.workers) x "
            f"train.accumulation={self.train.accumulation}; "
            f"nearest: {max(1, round(self.train.clips / shares)) * shares}",
        )

    @property
    def ranks(self) -> int:
        """Training processes: cluster.workers, or this one."""
        return max(self.cluster.workers, 1)

    @property
    def micro_batch(self) -> int:
        """Clips that one rank takes at once."""
        return self.train.clips // (self.ranks * self.train.accumulation)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Token grid (T, H, W) of a clip."""
        side = self.data.size_px // self.model.patch_px
        return self.data.frames // self.model.tubelet, side, side

    @property
    def samples(self) -> int:
        """Samples of the whole run, S x B."""
        return self.train.steps * self.train.clips

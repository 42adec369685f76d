"""The whole of a run's knobs, and what follows from them."""

import math
import re
from typing import Any

from rayjepa.config.model import MaskConfig, ModelConfig, ObjectiveConfig, PredictorConfig
from rayjepa.config.sections import DataConfig, ViewsConfig, need, section
from rayjepa.config.training import (
    CheckpointConfig,
    ClusterConfig,
    EmaConfig,
    HealthConfig,
    OptimConfig,
    ProfileConfig,
    ReportConfig,
    TrainConfig,
    ZeroConfig,
)


@section
class PhaseConfig:
    name: str
    """Name of the phase."""
    steps: int
    """Optimizer steps of the phase, after those before it."""
    set: dict[str, Any]
    """Knobs that differ from the run's own by dotted key; schedules begin anew, weights and moments go on."""

    def __post_init__(self) -> None:
        need(self.steps >= 1, f"phases[].steps={self.steps} must be at least 1")


@section
class StreamConfig:
    name: str
    """Name of the stream, a word: metrics and samples carry it."""
    weight: float
    """Share of the samples over the sum of all weights, above 0."""
    set: dict[str, Any]
    """Knobs of data.*, views.* and masks.* that differ from the run's own, by dotted key."""

    def __post_init__(self) -> None:
        need(0 < self.weight < math.inf, f"streams[].weight={self.weight} must be above 0, and finite")
        need(
            re.fullmatch(r"[A-Za-z0-9][-_.A-Za-z0-9]*", self.name) is not None,
            f"streams[].name={self.name!r} must be a word of letters, digits, '-', '_' and '.'",
        )


@section
class RunConfig:
    name: str | None = None
    """Name of the run and of its folder; none: preset, date and time."""
    out: str = "runs"
    """Folder in which the run's folder is made."""
    seed: int = 0
    """Seed of the tape, the masks and the weights."""
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
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
    profile: ProfileConfig = ProfileConfig()
    cluster: ClusterConfig = ClusterConfig()
    streams: tuple[StreamConfig, ...] = ()
    """Sources of clips, mixed within each step, each of one clip length and size; empty: data.* is the only one."""
    phases: tuple[PhaseConfig, ...] = ()
    """What follows train.steps, such as a cool-down with longer clips; [{name: N, steps: S, set: {KEY: VALUE}}, …]."""

    def __post_init__(self) -> None:
        need(self.seed >= 0, f"seed={self.seed} must be at least 0")
        frames, size, model = self.data.frames, self.data.size_px, self.model
        need(
            frames == 1 or frames % model.tubelet == 0,
            f"data.frames={frames} is neither 1 (images) nor a multiple of model.tubelet={model.tubelet}",
        )
        need(size % model.patch_px == 0, f"data.size_px={size} is not a multiple of model.patch_px={model.patch_px}")
        self._need_whole_axes()
        need(
            not self.train.compile_blocks or self.train.engine == "plain" or self.zero.stage < 3,
            "train.compile_blocks=true gains nothing at zero.stage=3, which gathers weights between the layers of a "
            "block and so cuts it to pieces; choose a lower stage or train.engine=plain, or leave it off",
        )
        last = self.profile.span[1] if self.profile.span is not None else 0
        whole = f"the {self.steps} steps of all phases" if self.phases else f"train.steps={self.steps}"
        need(last <= self.steps, f"profile.steps={self.profile.steps} ends behind {whole}")
        ranks = max(self.cluster.workers, 1)
        shares = ranks * self.train.accumulation
        need(
            self.train.clips % shares == 0,
            f"train.clips={self.train.clips} is not a multiple of {ranks} worker(s) (cluster.workers) x "
            f"train.accumulation={self.train.accumulation}; "
            f"nearest: {max(1, round(self.train.clips / shares)) * shares}",
        )

    def _need_whole_axes(self) -> None:
        """Sines and cosines of every axis of a fixed position code take as many channels."""
        model = self.model
        if model.position != "sincos":
            return
        is_flat = (model.sincos_grid or self.grid)[0] == 1
        parts = 4 if is_flat else 8 if model.sincos_axes == "time_half" else 1
        for key, width in (("model.width", model.width), ("predictor.width", self.predictor.width)):
            need(
                width % parts == 0,
                f"{key}={width} is not a multiple of {parts}, which model.position=sincos needs with "
                + ("images" if is_flat else f"model.sincos_axes={model.sincos_axes}"),
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
        """Token grid (T, H, W) of a clip; an image is one slot, whatever the tubelet."""
        side = self.data.size_px // self.model.patch_px
        return max(1, self.data.frames // self.model.tubelet), side, side

    @property
    def samples(self) -> int:
        """Samples of the whole run, S x B."""
        return self.steps * self.train.clips

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return self.train.steps + sum(phase.steps for phase in self.phases)

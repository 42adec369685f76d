"""The whole of a run's knobs, and what follows from them."""

from rayjepa.config.sections import (
    DataConfig,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    PredictorConfig,
    ViewsConfig,
    need,
    section,
)
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

    def __post_init__(self) -> None:
        need(self.seed >= 0, f"seed={self.seed} must be at least 0")
        frames, size, model = self.data.frames, self.data.size_px, self.model
        need(frames % model.tubelet == 0, f"data.frames={frames} is not a multiple of model.tubelet={model.tubelet}")
        need(size % model.patch_px == 0, f"data.size_px={size} is not a multiple of model.patch_px={model.patch_px}")
        last = self.profile.span[1] if self.profile.span is not None else 0
        need(
            last <= self.train.steps,
            f"profile.steps={self.profile.steps} ends behind train.steps={self.train.steps}",
        )
        ranks = max(self.cluster.workers, 1)
        shares = ranks * self.train.accumulation
        need(
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

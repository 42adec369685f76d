"""Every knob of a run, typed and frozen, and the one function that builds a run from them."""

from rayjepa.config.resolve import ConfigError, describe, dump, presets, resolve, to_yaml
from rayjepa.config.run import RunConfig
from rayjepa.config.sections import (
    BlockConfig,
    DataConfig,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    PredictorConfig,
    ViewsConfig,
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

__all__ = [
    "BlockConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "EmaConfig",
    "HealthConfig",
    "MaskConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PredictorConfig",
    "ProfileConfig",
    "ReportConfig",
    "RunConfig",
    "TrainConfig",
    "ViewsConfig",
    "ZeroConfig",
    "describe",
    "dump",
    "presets",
    "resolve",
    "to_yaml",
]

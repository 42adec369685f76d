"""Every knob of a run, typed and frozen, and the one function that builds a run from them."""

from rayjepa.config.model import (
    BlockConfig,
    ImageBlocksConfig,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from rayjepa.config.parts import Phase, Stream, phase_at, phases_of, quantum_of, settled, streams_of
from rayjepa.config.resolve import ConfigError, describe, dump, models, presets, resolve, to_yaml
from rayjepa.config.run import PhaseConfig, RunConfig, StreamConfig
from rayjepa.config.sections import DataConfig, ViewsConfig
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
    "ImageBlocksConfig",
    "MaskConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Phase",
    "PhaseConfig",
    "PredictorConfig",
    "ProfileConfig",
    "ReportConfig",
    "RunConfig",
    "Stream",
    "StreamConfig",
    "TrainConfig",
    "ViewsConfig",
    "ZeroConfig",
    "describe",
    "dump",
    "models",
    "phase_at",
    "phases_of",
    "presets",
    "quantum_of",
    "resolve",
    "settled",
    "streams_of",
    "to_yaml",
]

"""Knobs of the model, the masks and the objective."""

from typing import Literal

from rayjepa.config.sections import need, ordered, section


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
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """MLP of every block, the predictor's too: two layers around GELU, or SwiGLU at two thirds of the hidden width."""
    position: Literal["rope", "sincos"] = "rope"
    """Rotary embedding in every attention (V-JEPA 2), or a fixed sine-cosine code added to tokens (V-JEPA, I-JEPA)."""
    sincos_axes: Literal["equal", "time_half"] = "equal"
    """Channels of the sine-cosine code: a third for each axis (V-JEPA), or half for time, a quarter for each other."""
    sincos_grid: tuple[int, int, int] | None = None
    """Token grid (T, H, W) that the sine-cosine code is made for; others interpolate it. None: the run's own grid."""
    rope_pairing: Literal["interleaved", "tiled"] = "interleaved"
    """Rotary embedding: a true rotation of adjacent pairs, or the tiled angles of V-JEPA 2's published weights."""
    rope_table: Literal["fp32", "input"] = "fp32"
    """Precision in which rotary angles are taken: float32, or the queries' (bf16 under autocast, as in V-JEPA 2)."""
    init_rescale: bool = True
    """Divide the residual branches' last weights by sqrt(2 x layer) at initialisation; V-JEPA 1 and I-JEPA do not."""
    init: str | None = None
    """Weights that a new run starts from: a run, a checkpoint, a file of Meta's or a Hugging Face folder."""

    def __post_init__(self) -> None:
        for key in ("tubelet", "patch_px", "width", "depth", "heads"):
            need(getattr(self, key) >= 1, f"model.{key}={getattr(self, key)} must be at least 1")
        need(self.width % self.heads == 0, f"model.width={self.width} is not a multiple of model.heads={self.heads}")
        need(
            self.width // self.heads >= 6,
            f"model.width={self.width} over model.heads={self.heads} leaves fewer than 6 channels a head",
        )
        need(self.mlp_ratio > 0, f"model.mlp_ratio={self.mlp_ratio} must be above 0")
        grid = self.sincos_grid
        need(grid is None or min(grid) >= 1, f"model.sincos_grid={grid} must be three numbers of at least 1")


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
    mask_token: Literal["mask", "stream"] = "mask"
    """What has a mask token of its own: each mask type (V-JEPA), or each stream (V-JEPA 2, by frames per clip)."""

    def __post_init__(self) -> None:
        for key in ("width", "depth", "heads"):
            need(getattr(self, key) >= 1, f"predictor.{key}={getattr(self, key)} must be at least 1")
        need(
            self.width % self.heads == 0,
            f"predictor.width={self.width} is not a multiple of predictor.heads={self.heads}",
        )
        need(
            self.width // self.heads >= 6,
            f"predictor.width={self.width} over predictor.heads={self.heads} leaves fewer than 6 channels a head",
        )
        need(self.mlp_ratio > 0, f"predictor.mlp_ratio={self.mlp_ratio} must be above 0")


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
        need(self.blocks >= 1, f"masks.multiblock[].blocks={self.blocks} must be at least 1")
        ordered(self.spatial, "masks.multiblock[].spatial", 0.0, 1.0)
        ordered(self.temporal, "masks.multiblock[].temporal", 0.0, 1.0)
        ordered(self.aspect, "masks.multiblock[].aspect", 0.0, 100.0)


@section
class ImageBlocksConfig:
    targets: int = 4
    """Target blocks of kind ijepa, each one prediction task per clip."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Share of the frame's tokens in a target block, lowest and highest, in (0, 1]."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Height over width of a target block, lowest and highest."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Share of the frame's tokens in the square context block, before the targets are cut out of it."""
    min_context: int = 11
    """Tokens of a frame that a context keeps at least (I-JEPA: more than 10); where 20 places of the context block
    leave fewer, one target block fewer is cut out of it, and overlaps with the context."""
    blind_edge: bool = False
    """Keep all blocks off the last row and column, as I-JEPA's implementation does."""

    def __post_init__(self) -> None:
        need(self.targets >= 1, f"masks.ijepa.targets={self.targets} must be at least 1")
        ordered(self.target_scale, "masks.ijepa.target_scale", 0.0, 1.0)
        ordered(self.target_aspect, "masks.ijepa.target_aspect", 0.0, 100.0)
        ordered(self.context_scale, "masks.ijepa.context_scale", 0.0, 1.0)
        need(self.min_context >= 1, f"masks.ijepa.min_context={self.min_context} must be at least 1")


@section
class MaskConfig:
    kind: Literal["multiblock", "tube", "random", "causal", "ijepa"] = "multiblock"
    """V-JEPA's blocks, cells hidden through all time, single tokens, the future, or I-JEPA's context and targets."""
    ratio: float = 0.75
    """Hidden share 1 - C/N of the tokens for kinds tube, random and causal (there in whole time slots), in (0, 1)."""
    predict: float | None = None
    """Predicted share M/N of the tokens for the same kinds, at most masks.ratio; none: all that is hidden."""
    truncate: Literal["raster", "random", "none"] = "raster"
    """How multiblock and ijepa cut a clip's tokens to a step's counts: the first in raster order (V-JEPA; the clip's
    end is lost), a random choice, or not at all (counts differ by clip; short rows are padded, and not attended to)."""
    multiblock: tuple[BlockConfig, ...] = (BlockConfig(), BlockConfig(blocks=2, spatial=(0.7, 0.7)))
    """Mask types of kind multiblock; each is one prediction task per clip."""
    group_size: int = 24
    """Clips whose smallest context and target set the token counts of a step (V-JEPA: clips per GPU)."""
    same_positions: bool = False
    """Give clips at the same place of every group of masks.group_size the same mask, as all GPUs do in V-JEPA."""
    ijepa: ImageBlocksConfig = ImageBlocksConfig()

    def __post_init__(self) -> None:
        need(0 < self.ratio < 1, f"masks.ratio={self.ratio} must be in (0, 1)")
        if self.predict is not None:
            need(
                0 < self.predict <= self.ratio, f"masks.predict={self.predict} must be in (0, masks.ratio={self.ratio}]"
            )
        need(len(self.multiblock) >= 1, "masks.multiblock is empty; it needs at least one mask type")
        need(self.group_size >= 1, f"masks.group_size={self.group_size} must be at least 1")


@section
class ObjectiveConfig:
    kind: Literal["l1", "l2", "smooth_l1"] = "l1"
    """Distance between prediction and layer-normed target, mean over features."""

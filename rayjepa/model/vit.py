"""The encoder: a tokeniser that knows the grid, and a transformer that knows only where tokens lie."""

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rayjepa.config import ModelConfig
from rayjepa.model.blocks import EPS, Block, compile_each, compute_dtype, through
from rayjepa.model.places import Grid, Places, as_places
from rayjepa.model.position import position_of

Levels = tuple[Float[Tensor, "B N D"], ...]
"""Features of the same tokens at one or more depths, deepest last."""


class Vit(nn.Module):
    """Transformer over tokens at given places; its parameters are named as in Meta's releases.

    `grid` is the run's, for which a fixed position code is made if the model does not say for which; with `images`,
    clips of one frame have a tokeniser of their own (`patch_embed_image`), if a tubelet is more than that.
    Source:  V-JEPA (arXiv:2404.08471) and V-JEPA 2 (arXiv:2506.09985): pre-norm blocks, no class token, no dropout.
    Raises:  ValueError if the position code has no grid.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        grid: Grid | None = None,
        images: bool = False,
        checkpoint_blocks: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.width = cfg.width
        self.tubelet, self.patch_px = cfg.tubelet, cfg.patch_px
        self.checkpoint_blocks, self.compile_blocks = checkpoint_blocks, compile_blocks
        self.position = position_of(cfg, grid=grid)
        self.patch_embed = Tokeniser(tubelet=cfg.tubelet, patch_px=cfg.patch_px, width=cfg.width)
        self.blocks = nn.ModuleList(
            Block(cfg.width, heads=cfg.heads, mlp_ratio=cfg.mlp_ratio, mlp=cfg.mlp) for _ in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.width, eps=EPS)
        self.head_dim = cfg.width // cfg.heads
        # Last, so that the other weights of a seed do not depend on it.
        self.patch_embed_image = (
            Tokeniser(tubelet=1, patch_px=cfg.patch_px, width=cfg.width) if images and cfg.tubelet > 1 else None
        )
        self.compile_if_set()

    def compile_if_set(self) -> None:
        """Compile the blocks, if this model was made to; a copy has to be told again."""
        if self.compile_blocks:
            compile_each(self.blocks)

    def tokenise(self, views: Float[Tensor, "B 3 frames height width"]) -> tuple[Float[Tensor, "B N D"], Places]:
        """Tokens of the clips in raster order t*(H*W) + h*W + w, and where they lie.

        Of two tokenisers the idle one takes part with weight 0, so that every clip runs the same modules in the same
        order, and every parameter has a gradient.
        Raises:  ValueError if a clip is shorter than a tubelet.
        """
        frames, size, image = views.shape[2], (self.patch_px, self.patch_px), self.patch_embed_image
        if image is None:
            if frames < self.tubelet:
                raise ValueError(f"a clip of {frames} frames is less than a tubelet of {self.tubelet}: repeat them")
            grid = self.patch_embed(views)
        elif frames == 1:
            idle = self.patch_embed(views.new_zeros(1, 3, self.tubelet, *size))
            grid = image(views) + 0 * idle.sum()
        else:
            grid = self.patch_embed(views)
            grid = grid + 0 * image(views.new_zeros(1, 3, 1, *size)).sum()
        time, height, width = grid.shape[2:]
        return grid.flatten(2).transpose(1, 2), self.position.places((time, height, width), grid.device)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        at: Places | Float[Tensor, "*b N k"],
        *,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Levels:
        """Features of `tokens`, which are all of a clip's or some of them, at every level asked for (the last).

        Tokens that `valid` has false are attended to by none.
        Shapes:  `at` (N, k) if all clips share their places, else (B, N, k).
        """
        at = as_places(at)
        tokens = self.position.added(tokens, at)
        by = self.position.rotation(at, head_dim=self.head_dim, dtype=compute_dtype(tokens))
        recompute = self.checkpoint_blocks and self.training
        return (self.norm(through(self.blocks, tokens, by, valid=valid, recompute=recompute)),)


class Tokeniser(nn.Module):
    """Tubelets of a video clip, each projected to one token."""

    def __init__(self, *, tubelet: int, patch_px: int, width: int) -> None:
        super().__init__()
        size = (tubelet, patch_px, patch_px)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def forward(self, views: Float[Tensor, "B 3 frames height width"]) -> Float[Tensor, "B D T H W"]:
        """The grid of tokens."""
        return self.proj(views)


def gather(tokens: Float[Tensor, "B N D"], ids: Int64[Tensor, "B C"]) -> Float[Tensor, "B C D"]:
    """The tokens named by `ids`, row by row."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

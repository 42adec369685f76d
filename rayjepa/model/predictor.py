"""The predictor: what is hidden, guessed from what is seen, in the encoder's own space."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rayjepa.config import ModelConfig, PredictorConfig
from rayjepa.model.blocks import EPS, Block, compile_each, compute_dtype, through
from rayjepa.model.places import Grid, Places, as_places
from rayjepa.model.position import position_of


class Predictor(nn.Module):
    """A narrow transformer over the context's features and one mask token per hidden place.

    Position encoding and kind of MLP are those of the encoder, `model`, and `grid` is as there.
    Source:  V-JEPA (arXiv:2404.08471), section 3; of the learned mask tokens the caller says which one is meant.
             Positions come from the tokens' own places, not from the configured crop, so another resolution is
             predicted in place.
    """

    def __init__(
        self,
        cfg: PredictorConfig,
        *,
        model: ModelConfig,
        mask_tokens: int,
        grid: Grid | None = None,
        checkpoint_blocks: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = checkpoint_blocks
        self.position = position_of(model, grid=grid)
        self.head_dim = cfg.width // cfg.heads
        self.predictor_embed = nn.Linear(model.width, cfg.width)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, cfg.width)) for _ in range(mask_tokens))
        self.predictor_blocks = nn.ModuleList(
            Block(cfg.width, heads=cfg.heads, mlp_ratio=cfg.mlp_ratio, mlp=model.mlp) for _ in range(cfg.depth)
        )
        self.predictor_norm = nn.LayerNorm(cfg.width, eps=EPS)
        self.predictor_proj = nn.Linear(cfg.width, model.width)
        if compile_blocks:
            compile_each(self.predictor_blocks)

    def forward(
        self,
        context: Float[Tensor, "B C D"],
        context_at: Places | Float[Tensor, "*b C k"],
        target_at: Places | Float[Tensor, "*b M k"],
        *,
        mask_token: int,
        valid: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B M D"]:
        """Guessed features of the tokens at `target_at`, in that order.

        Tokens of context and target that `valid` has false are attended to by none.
        """
        context_at, target_at = as_places(context_at), as_places(target_at)
        seen = self.predictor_embed(context)
        tokens = torch.cat(tuple(self.mask_tokens))  # all take part: a stream may have fewer tasks than another
        hidden = tokens[mask_token].to(seen.dtype).expand(len(seen), target_at.tokens, -1)
        x = torch.cat((self.position.added(seen, context_at), self.position.added(hidden, target_at)), dim=1)
        dtype = compute_dtype(x)
        first, last = (
            self.position.rotation(at, head_dim=self.head_dim, dtype=dtype) for at in (context_at, target_at)
        )
        by = None if first is None or last is None else first.then(last)
        x = through(self.predictor_blocks, x, by, valid=valid, recompute=self.checkpoint_blocks and self.training)
        return self.predictor_proj(self.predictor_norm(x[:, context.shape[1] :]))

"""The predictor: what is hidden, guessed from what is seen, in the encoder's own space."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rayjepa.config import PredictorConfig
from rayjepa.model.rope import Pairing, rotation
from rayjepa.model.vit import EPS, Block, compute_dtype, through


class Predictor(nn.Module):
    """A narrow transformer over the context's features and one mask token per hidden place.

    Source:  V-JEPA (arXiv:2404.08471), section 3; a mask token per mask type, as there. Positions come from the
             tokens' own coordinates, not from the configured crop, so another resolution is predicted in place.
    """

    def __init__(
        self,
        cfg: PredictorConfig,
        *,
        encoder_width: int,
        mask_types: int,
        pairing: Pairing,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = checkpoint_blocks
        self.pairing: Pairing = pairing
        self.head_dim = cfg.width // cfg.heads
        self.predictor_embed = nn.Linear(encoder_width, cfg.width)
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, cfg.width)) for _ in range(mask_types))
        self.predictor_blocks = nn.ModuleList(
            Block(cfg.width, heads=cfg.heads, mlp_ratio=cfg.mlp_ratio) for _ in range(cfg.depth)
        )
        self.predictor_norm = nn.LayerNorm(cfg.width, eps=EPS)
        self.predictor_proj = nn.Linear(cfg.width, encoder_width)

    def forward(
        self,
        context: Float[Tensor, "B C D"],
        context_at: Float[Tensor, "B C k"],
        target_at: Float[Tensor, "B M k"],
        *,
        mask_type: int,
    ) -> Float[Tensor, "B M D"]:
        """Guessed features of the tokens at `target_at`, in that order."""
        seen = self.predictor_embed(context)
        hidden = self.mask_tokens[mask_type].to(seen.dtype).expand(*target_at.shape[:2], -1)
        x = torch.cat((seen, hidden), dim=1)
        at = torch.cat((context_at, target_at), dim=1)
        by = rotation(at, head_dim=self.head_dim, pairing=self.pairing, dtype=compute_dtype(x))
        x = through(self.predictor_blocks, x, by, recompute=self.checkpoint_blocks and self.training)
        return self.predictor_proj(self.predictor_norm(x[:, context.shape[1] :]))

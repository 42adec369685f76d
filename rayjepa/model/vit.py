"""The encoder: a tokeniser that knows the grid, and a transformer that knows only coordinates."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # untyped in PyTorch

from rayjepa.config import ModelConfig
from rayjepa.model.rope import Pairing, Rotation, rotate, rotation

EPS = 1e-6
"""Epsilon of every LayerNorm in encoder and predictor (V-JEPA)."""

Levels = tuple[Float[Tensor, "B N D"], ...]
"""Features of the same tokens at one or more depths, deepest last."""


class Vit(nn.Module):
    """Transformer over tokens at given coordinates; its parameters are named as in Meta's releases.

    Source:  V-JEPA (arXiv:2404.08471) and V-JEPA 2 (arXiv:2506.09985): pre-norm blocks, no class token, no dropout.
    """

    def __init__(self, cfg: ModelConfig, *, checkpoint_blocks: bool = False) -> None:
        super().__init__()
        self.width = cfg.width
        self.checkpoint_blocks = checkpoint_blocks
        self.pairing: Pairing = cfg.rope_pairing
        self.patch_embed = Tokeniser(tubelet=cfg.tubelet, patch_px=cfg.patch_px, width=cfg.width)
        self.blocks = nn.ModuleList(
            Block(cfg.width, heads=cfg.heads, mlp_ratio=cfg.mlp_ratio) for _ in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.width, eps=EPS)
        self.head_dim = cfg.width // cfg.heads

    def forward(self, tokens: Float[Tensor, "B N D"], coordinates: Float[Tensor, "*b N k"]) -> Levels:
        """Features of `tokens`, which are all of a clip's or some of them, at every level asked for (the last).

        Shapes:  coordinates (N, k) if all clips share them, else (B, N, k).
        """
        by = rotation(coordinates, head_dim=self.head_dim, pairing=self.pairing, dtype=compute_dtype(tokens))
        tokens = through(self.blocks, tokens, by, recompute=self.checkpoint_blocks and self.training)
        return (self.norm(tokens),)


class Tokeniser(nn.Module):
    """Tubelets of a video clip, each projected to one token."""

    def __init__(self, *, tubelet: int, patch_px: int, width: int) -> None:
        super().__init__()
        size = (tubelet, patch_px, patch_px)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def forward(
        self, views: Float[Tensor, "B 3 frames height width"]
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "N 3"]]:
        """Tokens in raster order t*(H*W) + h*W + w, and where each lies: (t, h, w) in units of a tubelet."""
        grid = self.proj(views)
        axes = [torch.arange(n, dtype=torch.float32, device=views.device) for n in grid.shape[2:]]
        return grid.flatten(2).transpose(1, 2), torch.cartesian_prod(*axes)


class Block(nn.Module):
    """Attention and MLP, each added to its normalised input's residual."""

    def __init__(self, width: int, *, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden=round(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "B N D"], by: Rotation) -> Float[Tensor, "B N D"]:
        """`x` after one round of attention and one of the MLP."""
        x = x + self.attn(self.norm1(x), by)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Full self-attention with rotated queries and keys."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"], by: Rotation) -> Float[Tensor, "B N D"]:
        """What each token gathers from all tokens given."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(rotate(q, by), rotate(k, by), v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Each token's features, transformed on their own."""
        return self.fc2(F.gelu(self.fc1(x)))


def through(
    blocks: nn.ModuleList, x: Float[Tensor, "B N D"], by: Rotation, *, recompute: bool
) -> Float[Tensor, "B N D"]:
    """`x` after all `blocks`; with `recompute`, backward makes a block's activations again instead of keeping them."""
    recompute = recompute and torch.is_grad_enabled()
    for block in blocks:
        x = _recomputed(block, x, by) if recompute else block(x, by)
    return x


def _recomputed(block: nn.Module, x: Tensor, by: Rotation) -> Tensor:
    return checkpoint(block, x, by, use_reentrant=False)  # pyright: ignore[reportUnknownVariableType]


def initialise(module: nn.Module, *, generator: torch.Generator) -> None:
    """Fill every weight, bias and norm below `module` in order, and scale the residual branches down by depth.

    Source:  V-JEPA 2: weights of standard deviation 0.02, biases 0; `attn.proj` and `mlp.fc2` of block l = 1, 2, …
             over sqrt(2 l). Its normal is cut at +-2, which is 100 standard deviations, so ours is not cut.
    """
    for layer in module.modules():
        match layer:
            case nn.Linear() | nn.Conv3d():
                nn.init.normal_(layer.weight, std=0.02, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            case nn.LayerNorm():
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)
            case _:
                pass
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    with torch.no_grad():
        for place, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * place))
            block.mlp.fc2.weight.div_(math.sqrt(2 * place))


def gather(tokens: Float[Tensor, "B N D"], ids: Int64[Tensor, "B C"]) -> Float[Tensor, "B C D"]:
    """The tokens named by `ids`, row by row."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear layer gives for `x` here: autocast's, if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

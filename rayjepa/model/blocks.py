"""Transformer blocks, which encoder and predictor are made of, and how their weights begin."""

import math
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]  # untyped in PyTorch

from rayjepa.model.rope import Rotation, rotate

EPS = 1e-6
"""Epsilon of every LayerNorm in encoder and predictor (V-JEPA)."""

MlpKind = Literal["gelu", "swiglu"]


class Block(nn.Module):
    """Attention and MLP, each added to its normalised input's residual."""

    def __init__(self, width: int, *, heads: int, mlp_ratio: float, mlp: MlpKind = "gelu") -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        match mlp:
            case "gelu":
                self.mlp = Mlp(width, hidden=hidden)
            case "swiglu":
                self.mlp = SwiGlu(width, hidden=hidden)
            case _ as unreachable:
                assert_never(unreachable)

    def forward(
        self, x: Float[Tensor, "B N D"], by: Rotation | None = None, mask: Bool[Tensor, "B 1 1 N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """`x` after one round of attention and one of the MLP; no token attends to those that `mask` has false."""
        x = x + self.attn(self.norm1(x), by, mask)
        return x + self.mlp(self.norm2(x))

    @property
    def last_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the last layer of each residual branch."""
        return self.attn.proj.weight, self.mlp.last.weight


class Attention(nn.Module):
    """Full self-attention, with queries and keys rotated where a rotation is given."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B N D"], by: Rotation | None = None, mask: Bool[Tensor, "B 1 1 N"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """What each token gathers from the tokens given."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
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

    @property
    def last(self) -> nn.Linear:
        """The layer whose output is added to the residual."""
        return self.fc2


class SwiGlu(nn.Module):
    """Two linear layers side by side, one the other's gate by SiLU, and one behind them.

    Source:  V-JEPA 2's implementation: two thirds of the hidden width, rounded up to a multiple of 8, so that the
             parameters are about those of two layers. It rescales fc2 at the start; we fc3, which is the last.
    """

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        inner = -(-(2 * hidden // 3) // 8) * 8
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(width, inner)
        self.fc3 = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Each token's features, transformed on their own."""
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))

    @property
    def last(self) -> nn.Linear:
        """The layer whose output is added to the residual."""
        return self.fc3


def through(
    blocks: nn.ModuleList,
    x: Float[Tensor, "B N D"],
    by: Rotation | None,
    *,
    valid: Bool[Tensor, "B N"] | None = None,
    recompute: bool,
) -> Float[Tensor, "B N D"]:
    """`x` after all `blocks`; with `recompute`, backward makes a block's activations again instead of keeping them.

    Tokens that `valid` has false are attended to by none.
    """
    recompute = recompute and torch.is_grad_enabled()
    mask = None if valid is None else valid[:, None, None]
    for block in blocks:
        x = _recomputed(block, x, by, mask) if recompute else block(x, by, mask)
    return x


def _recomputed(block: nn.Module, x: Tensor, by: Rotation | None, mask: Tensor | None) -> Tensor:
    return checkpoint(block, x, by, mask, use_reentrant=False)  # pyright: ignore[reportUnknownVariableType]


def compile_each(blocks: nn.ModuleList) -> None:
    """Compile each block in place, by its first call; token counts differ from step to step, so for any.

    Names of parameters stay, and a deep copy is not compiled.
    """
    for block in blocks:
        block.compile(dynamic=True)  # pyright: ignore[reportUnknownMemberType]


def initialise(module: nn.Module, *, generator: torch.Generator, rescale: bool = True) -> None:
    """Fill every weight, bias and norm below `module` in order; with `rescale`, shrink residual branches with depth.

    Source:  V-JEPA 2: weights of standard deviation 0.02, biases 0; the last weights of both branches of block
             l = 1, 2, … over sqrt(2 l). V-JEPA 1 and I-JEPA undo that at once. Their normal is cut at +-2, which is
             100 standard deviations, so ours is not cut.
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
    blocks = [block for block in module.modules() if isinstance(block, Block)] if rescale else []
    with torch.no_grad():
        for place, block in enumerate(blocks, start=1):
            for weight in block.last_weights:
                weight.div_(math.sqrt(2 * place))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear layer gives for `x` here: autocast's, if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype

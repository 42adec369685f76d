"""The attentive probe: a small trained reader over all tokens of a frozen encoder, as V-JEPA 2 is evaluated."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-5
"""Epsilon of the probe's LayerNorms (V-JEPA 2; the encoder's are 1e-6, and so are those of its Hugging Face port)."""
HEADS = 16
"""Attention heads of V-JEPA 2's probes, whatever the encoder has: ViT-g has 22."""
RATIO = 4
"""Hidden width of an MLP over its width."""


class AttentiveProbe(nn.Module):
    """Class scores of clips from all their tokens; its parameters are named as in Meta's released probes.

    Source:  V-JEPA 2 (arXiv:2506.09985), section 4.1: self-attention blocks without a position code, then one
             cross-attention block with a learned query, then a linear layer.
    Raises:  ValueError if `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, *, classes: int, blocks: int = 3, heads: int = HEADS) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"an attentive probe of {heads} heads does not fit width {width}, no multiple of it")
        self.pooler = Pooler(width, blocks=blocks, heads=heads)
        self.linear = nn.Linear(width, classes)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B classes"]:
        """A score for each class."""
        return self.linear(self.pooler(tokens))

    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`.

        Source:  V-JEPA 2's implementation: normals of standard deviation 0.02, biases 0; the last weights of the
                 residual branches of block l over sqrt(2 l), the cross-attention block counting as the last of them.
        """
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            match layer:
                case nn.Linear():
                    nn.init.normal_(layer.weight, std=0.02, generator=generator)
                    nn.init.zeros_(layer.bias)
                case nn.LayerNorm():
                    nn.init.ones_(layer.weight)
                    nn.init.zeros_(layer.bias)
                case _:
                    pass
        nn.init.normal_(self.pooler.query_tokens, std=0.02, generator=generator)
        self.pooler.rescale()


class Pooler(nn.Module):
    """One vector per clip."""

    def __init__(self, width: int, *, blocks: int, heads: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = CrossBlock(width, heads=heads)
        self.blocks = nn.ModuleList(SelfBlock(width, heads=heads) for _ in range(blocks))

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """What the query gathers from the tokens, after they have looked at each other."""
        for block in self.blocks:
            tokens = block(tokens)
        query = self.query_tokens.expand(len(tokens), -1, -1)
        return self.cross_attention_block(query, tokens).squeeze(1)

    @torch.no_grad()
    def rescale(self) -> None:
        """Divide the last weights of the residual branches by the square root of twice the block's number."""
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, SelfBlock)
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))
        self.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * max(1, len(self.blocks))))


class SelfBlock(nn.Module):
    """Attention and MLP, each added to its normalised input's residual."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = SelfAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """`tokens` after one round of attention and one of the MLP."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class CrossBlock(nn.Module):
    """Queries that read normalised tokens, and an MLP; the queries themselves are not normalised before."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.xattn = CrossAttention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)

    def forward(self, query: Float[Tensor, "B Q D"], tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B Q D"]:
        """`query` after it has read `tokens`."""
        query = query + self.xattn(query, self.norm1(tokens))
        return query + self.mlp(self.norm2(query))


class SelfAttention(nn.Module):
    """Full self-attention without positions."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """What each token gathers from all."""
        return self.proj(_attend(*self.qkv(tokens).chunk(3, dim=-1), heads=self.heads))


class CrossAttention(nn.Module):
    """Attention of queries to tokens, without an output projection."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, query: Float[Tensor, "B Q D"], tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B Q D"]:
        """What each query gathers from the tokens."""
        return _attend(self.q(query), *self.kv(tokens).chunk(2, dim=-1), heads=self.heads)


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, RATIO * width)
        self.fc2 = nn.Linear(RATIO * width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Each token's features, transformed on their own."""
        return self.fc2(F.gelu(self.fc1(x)))


def _attend(
    query: Float[Tensor, "B Q D"], key: Float[Tensor, "B N D"], value: Float[Tensor, "B N D"], *, heads: int
) -> Float[Tensor, "B Q D"]:
    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    return F.scaled_dot_product_attention(split(query), split(key), split(value)).transpose(1, 2).flatten(2)

"""Rotary position embedding of tokens that carry coordinates."""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pairing = Literal["interleaved", "tiled"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of every token's angles: made once per forward pass and shared by its blocks.

    The sine is negative on the first of each pair of channels, as its partner enters with a minus there. Channels
    that do not turn have angle 0, which is cheaper than to cut them off and put them back.
    Shapes:  both (B or 1, 1, N, R), R the head's channels less an odd last one; the middle axis is for the heads.
    """

    cos: Float[Tensor, "b 1 N R"]
    sin: Float[Tensor, "b 1 N R"]


def channels(head_dim: int, axes: int) -> int:
    """Channels of a head that turn with each of `axes` coordinates: even, and the same for all.

    What is left over at the end of the head is not rotated.
    """
    return 2 * (head_dim // axes // 2)


def rotation(coordinates: Float[Tensor, "*b N k"], *, head_dim: int, pairing: Pairing, dtype: torch.dtype) -> Rotation:
    """Tables that `rotate` applies to queries and keys of tokens at `coordinates`, for all clips or for each.

    Angles are taken in float32 and only their cosines and sines are cast: angles in bf16 would put the table off by
    up to 0.07 at position 31, against 0.008 by rounding the table.
    Source:  V-JEPA 2 (arXiv:2506.09985), 3-D RoPE; base 10000 and the split of channels as in its implementation.
             "interleaved" turns the pair (2j, 2j+1) by one angle. "tiled" is what the published weights were trained
             with: both members of a pair take the angle of their own place in a doubled list, which is no rotation.
    """
    per_axis = channels(head_dim, coordinates.shape[-1])
    half = per_axis // 2
    exponents = torch.arange(half, dtype=torch.float32, device=coordinates.device) / half
    angles = coordinates.float().unsqueeze(-1) * 10000.0**-exponents
    match pairing:
        case "interleaved":
            angles = angles.repeat_interleave(2, dim=-1)
        case "tiled":
            angles = torch.cat((angles, angles), dim=-1)
        case _ as unreachable:
            assert_never(unreachable)
    angles = angles.flatten(-2)
    angles = F.pad(angles, (0, head_dim // 2 * 2 - angles.shape[-1]))
    angles = angles[None, None] if angles.dim() == 2 else angles[:, None]
    sin = angles.sin()
    sin[..., ::2].neg_()
    return Rotation(cos=angles.cos().to(dtype), sin=sin.to(dtype))


def rotate(x: Float[Tensor, "B h N d"], by: Rotation) -> Float[Tensor, "B h N d"]:
    """`x` with every head turned."""
    even = by.cos.shape[-1]
    turned = x[..., :even]
    partner = turned.reshape(*turned.shape[:-1], -1, 2).flip(-1).flatten(-2)
    turned = torch.addcmul(turned * by.cos, partner, by.sin)
    return turned if even == x.shape[-1] else torch.cat((turned, x[..., even:]), dim=-1)

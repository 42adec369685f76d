"""Rotary position embedding of tokens that carry coordinates."""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rayjepa.model.places import Places, as_places

Pairing = Literal["interleaved", "tiled"]
Precision = Literal["fp32", "input"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of every token's angles: made once per forward pass and shared by its blocks.

    The sine is negative on the first of each pair of channels, as its partner enters with a minus there. Channels
    that do not turn have angle 0, which is cheaper than to cut them off and put them back.
    Shapes:  both (B or 1, 1, N, R), R the head's channels less an odd last one; the middle axis is for the heads.
    """

    cos: Float[Tensor, "b 1 N R"]
    sin: Float[Tensor, "b 1 N R"]
    is_fused: bool = True
    """Whether both products are rounded as one."""

    def then(self, other: "Rotation") -> "Rotation":
        """The rotation of these tokens and then those of `other`, of as many clips."""
        cos, sin = (torch.cat(pair, dim=2) for pair in ((self.cos, other.cos), (self.sin, other.sin)))
        return Rotation(cos=cos, sin=sin, is_fused=self.is_fused)


def channels(head_dim: int, axes: int) -> int:
    """Channels of a head that turn with each of `axes` coordinates: even, and the same for all.

    What is left over at the end of the head is not rotated.
    """
    return 2 * (head_dim // axes // 2)


def rotation(
    at: Places | Float[Tensor, "*b N k"],
    *,
    head_dim: int,
    pairing: Pairing,
    dtype: torch.dtype,
    precision: Precision = "fp32",
) -> Rotation:
    """Tables that `rotate` applies to queries and keys of tokens at given coordinates, for all clips or for each.

    Angles are taken in float32 and only their cosines and sines are cast: angles in bf16 would put the table off by
    up to 0.07 at position 31 (heads of 80), against 0.002 by rounding the table. Precision "input" takes them as the
    published code does: in the queries' dtype, but for what autocast has in float32 (on GPUs the powers and all that
    follows, so that only the exponents are rounded; on CPUs nothing).
    Source:  V-JEPA 2 (arXiv:2506.09985), 3-D RoPE; base 10000 and the split of channels as in its implementation.
             "interleaved" turns the pair (2j, 2j+1) by one angle. "tiled" is what the published weights were trained
             with: both members of a pair take the angle of their own place in a doubled list, which is no rotation.
    """
    at = as_places(at)
    computed = dtype if precision == "input" else torch.float32
    mixed = precision == "input" and torch.is_autocast_enabled(at.whole.device.type)

    def tables(coordinates: Tensor) -> Tensor:
        angles = _angles(coordinates.to(computed), head_dim=head_dim, pairing=pairing)
        sin = angles.sin()
        sin[..., ::2].neg_()
        both = torch.cat((angles.cos(), sin), dim=-1)
        return both if precision == "input" else both.to(dtype)

    rows = at.table(("rotation", head_dim, pairing, dtype, precision, mixed), tables)
    rows = rows[None, None] if rows.dim() == 2 else rows[:, None]
    cos, sin = rows.chunk(2, dim=-1)
    return Rotation(cos=cos, sin=sin, is_fused=precision == "fp32")


def _angles(coordinates: Float[Tensor, "*b N k"], *, head_dim: int, pairing: Pairing) -> Float[Tensor, "*b N R"]:
    half = channels(head_dim, coordinates.shape[-1]) // 2
    exponents = torch.arange(half, dtype=coordinates.dtype, device=coordinates.device) / half
    angles = coordinates.unsqueeze(-1) * (1.0 / 10000.0**exponents)
    match pairing:
        case "interleaved":
            angles = angles.repeat_interleave(2, dim=-1)
        case "tiled":
            angles = torch.cat((angles, angles), dim=-1)
        case _ as unreachable:
            assert_never(unreachable)
    angles = angles.flatten(-2)
    return F.pad(angles, (0, head_dim // 2 * 2 - angles.shape[-1]))


def rotate(x: Float[Tensor, "B h N d"], by: Rotation) -> Float[Tensor, "B h N d"]:
    """`x` with every head turned."""
    even = by.cos.shape[-1]
    turned = x[..., :even]
    partner = turned.reshape(*turned.shape[:-1], -1, 2).flip(-1).flatten(-2)
    turned = torch.addcmul(turned * by.cos, partner, by.sin) if by.is_fused else turned * by.cos + partner * by.sin
    return turned if even == x.shape[-1] else torch.cat((turned, x[..., even:]), dim=-1)

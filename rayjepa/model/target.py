"""The target: a slow copy of the encoder, whose features are what is predicted."""

import copy
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rayjepa.model.vit import Levels, Vit


class Target(nn.Module):
    """Exponential moving average of an encoder in float32, never trained by gradient.

    It stays float32 whatever the encoder computes in: at momentum 0.999 a step is below half a bf16 ulp of the
    weight, so that a bf16 average stands still, while a float32 average of bf16 weights is off by 1e-4 of its lag.
    """

    def __init__(self, encoder: Vit) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).float().requires_grad_(False).eval()
        self.encoder.compile_if_set()
        self.width = encoder.width

    def forward(self, views: Float[Tensor, "B 3 frames height width"]) -> Levels:
        """Features of every token of the clips, at the encoder's levels."""
        return self.encoder(*self.encoder.tokenise(views))

    @torch.no_grad()
    def update_(self, source: Iterable[tuple[str, Tensor]], *, momentum: float) -> None:
        """Move every parameter and buffer towards the tensor of its name in `source`, as `average_` does."""
        own = dict(chain(self.encoder.named_parameters(), self.encoder.named_buffers()))
        average_(own, dict(source), momentum=momentum)


@torch.no_grad()
def average_(own: Mapping[str, Tensor], new: Mapping[str, Tensor], *, momentum: float) -> None:
    """Move every tensor of a target to momentum * itself + (1 - momentum) * the tensor of its name in `new`.

    Names are the encoder's own (`blocks.0.norm1.weight`); counters among the buffers are copied. With momentum 1
    nothing is touched.
    Raises:  ValueError if momentum is outside [0, 1]; RuntimeError unless both have the same names.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"ema momentum is {momentum}; it must be in [0, 1]")
    if own.keys() != new.keys():
        missing, extra = sorted(own.keys() - new.keys()), sorted(new.keys() - own.keys())
        raise RuntimeError(
            f"the target's update is short of {missing[:3]} ({len(missing)} tensors) and has {extra[:3]} "
            f"({len(extra)} tensors) too many; give the encoder's named parameters and buffers"
        )
    if momentum == 1:
        return
    averaged = [name for name, tensor in own.items() if tensor.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]  # one launch for all; no public name
        [own[name] for name in averaged], [new[name].detach().to(own[name]) for name in averaged], 1 - momentum
    )
    for name in own.keys() - set(averaged):
        own[name].copy_(new[name])


def make_target(encoder: Vit) -> Target:
    """A target that starts equal to `encoder`; made before an engine takes the encoder's parameters apart."""
    return Target(encoder)

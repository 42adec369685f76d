"""Compares compiled blocks with plain ones, kept and recomputed; prints what was found as JSON."""

import json

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rayjepa.config import ModelConfig
from rayjepa.model import Vit
from rayjepa.model.blocks import initialise


def features_and_gradients(vit: Vit) -> list[Tensor]:
    """Of two clips of unequal numbers of tokens: one compilation is for both."""
    initialise(vit, generator=torch.Generator().manual_seed(0))
    features: list[Tensor] = []
    for height in (8, 12):
        views = torch.randn(2, 3, 4, height, 8, generator=torch.Generator().manual_seed(height))
        features += vit(*vit.tokenise(views))
    torch.cat([each.flatten() for each in features]).square().mean().backward()
    return [*features, *(p.grad for p in vit.parameters() if p.grad is not None)]


def main() -> None:
    cfg, found = ModelConfig(patch_px=4, width=24, depth=2, heads=2), []
    for recompute in (False, True):
        plain, made = (Vit(cfg, checkpoint_blocks=recompute, compile_blocks=compiled) for compiled in (False, True))
        counters.clear()
        pairs = zip(features_and_gradients(made), features_and_gradients(plain), strict=True)
        found.append(
            {
                "difference": max(float((one - other).detach().abs().max()) for one, other in pairs),
                "names": [name for name, _ in made.named_parameters()]
                == [name for name, _ in plain.named_parameters()],
                "graphs": counters["stats"]["calls_captured"],
            }
        )
        torch.compiler.reset()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Encoder of images beside IJepaModel of transformers, with the same random weights."""

import os

import pytest
import torch
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import IJepaConfig, IJepaModel

from rayjepa.config import ModelConfig
from rayjepa.interop.names import IMAGE_ENCODER, IMAGE_MEMORY, inverse, qkv_fused, renamed
from rayjepa.model import Vit

pytestmark = pytest.mark.slow  # transformers takes five seconds to import


@pytest.fixture(scope="module")
def theirs() -> IJepaModel:
    torch.manual_seed(0)
    cfg = IJepaConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, image_size=20, patch_size=4,
        layer_norm_eps=1e-6, initializer_range=0.06,
    )  # fmt: skip
    model = IJepaModel(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also norms and biases
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    return model


def encoder_of(theirs: IJepaModel) -> Vit:
    """Ours, whose code takes the place of theirs, which they learn."""
    cfg = ModelConfig(
        tubelet=1, patch_px=4, width=48, depth=3, heads=3, mlp_ratio=2.0, position="sincos", sincos_grid=(1, 5, 5)
    )
    ours, state = Vit(cfg).eval(), theirs.state_dict()
    code = state.pop("embeddings.position_embeddings")
    found = qkv_fused(renamed(renamed(state, IMAGE_MEMORY), inverse(IMAGE_ENCODER)))
    found["patch_embed.proj.weight"] = found["patch_embed.proj.weight"].unsqueeze(2)
    ours.load_state_dict(found)
    empty = torch.zeros(1, 3, 1, 20, 20)
    tokens, at = ours.tokenise(empty)
    with torch.no_grad():
        code.copy_(ours.position.added(torch.zeros_like(tokens), at))
    return ours


def images() -> Tensor:
    return torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def test_features_of_images_are_theirs(theirs: IJepaModel) -> None:
    ours = encoder_of(theirs)
    with torch.no_grad():
        expected = theirs(pixel_values=images()).last_hidden_state
        found = ours(*ours.tokenise(images().unsqueeze(2)))[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_code_of_other_places_would_give_other_features(theirs: IJepaModel) -> None:
    ours = encoder_of(theirs)
    tokens, at = ours.tokenise(images().unsqueeze(2))
    with torch.no_grad():
        right, turned = ours(tokens, at)[-1], ours(tokens, at.coordinates[:, [0, 2, 1]])[-1]
    assert (right - turned).abs().max() > 0.1

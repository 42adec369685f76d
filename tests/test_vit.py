from typing import Literal

import pytest
import torch

from rayjepa.config import ModelConfig, resolve
from rayjepa.model import Vit, build
from rayjepa.model.blocks import initialise
from rayjepa.model.vit import gather


def small(pairing: Literal["interleaved", "tiled"] = "interleaved") -> Vit:
    vit = Vit(ModelConfig(patch_px=4, width=24, depth=2, heads=2, rope_pairing=pairing))
    initialise(vit, generator=torch.Generator().manual_seed(0))
    return vit.requires_grad_(False)


def clip(frames: int = 4, size: int = 12) -> torch.Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def test_parameters_are_named_as_in_the_published_weights() -> None:
    names = {name for name, _ in small().named_parameters()}
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    modules = ["patch_embed.proj", "norm", *(f"blocks.{i}.{m}" for i in range(2) for m in block)]
    assert names == {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}


def test_tokens_come_in_raster_order_with_their_coordinates() -> None:
    vit = small()
    tokens, at = vit.tokenise(clip())
    coordinates = at.coordinates
    assert tokens.shape == (2, 18, 24)
    t, h, w = 1, 0, 2
    place = t * 9 + h * 3 + w
    assert coordinates[place].tolist() == [t, h, w]
    tubelet = clip()[:, :, 2:4, 0:4, 8:12].flatten(1)
    expected = tubelet @ vit.patch_embed.proj.weight.flatten(1).T + vit.patch_embed.proj.bias
    torch.testing.assert_close(tokens[:, place], expected)


def test_a_block_computes_its_equation_at_the_origin() -> None:
    """At coordinates 0 nothing turns, so that attention is the plain formula."""
    vit, x = small(), torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2))
    (features,) = vit(x, torch.zeros(5, 3))
    for block in vit.blocks:
        normed = torch.nn.functional.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 1e-6)
        q, k, v = (part.view(2, 5, 2, 12).transpose(1, 2) for part in block.attn.qkv(normed).chunk(3, dim=-1))
        mixed = (q @ k.transpose(-1, -2) / 12**0.5).softmax(-1) @ v
        x = x + block.attn.proj(mixed.transpose(1, 2).reshape(2, 5, 24))
        hidden = block.mlp.fc1(torch.nn.functional.layer_norm(x, (24,), block.norm2.weight, block.norm2.bias, 1e-6))
        x = x + block.mlp.fc2(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
    torch.testing.assert_close(features, torch.nn.functional.layer_norm(x, (24,), vit.norm.weight, vit.norm.bias, 1e-6))


def test_the_order_of_tokens_is_immaterial_as_places_come_from_coordinates() -> None:
    vit = small()
    tokens, coordinates = vit.tokenise(clip())
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    shuffled = vit(tokens[:, order], coordinates.coordinates[order])[-1]
    torch.testing.assert_close(shuffled, vit(tokens, coordinates)[-1][:, order], rtol=1e-4, atol=1e-5)


def test_interleaved_features_do_not_change_if_all_coordinates_shift() -> None:
    tokens, at = small().tokenise(clip())
    coordinates = at.coordinates
    true, tiled = small(), small("tiled")
    shift = torch.tensor([3.0, 5.0, 2.0])
    here, there = (true(tokens, places)[-1] for places in (coordinates, coordinates + shift))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-5)
    here, there = (tiled(tokens, places)[-1] for places in (coordinates, coordinates + shift))
    assert (here - there).abs().max() > 1e-5


def test_each_clip_may_keep_other_tokens() -> None:
    vit = small()
    tokens, at = vit.tokenise(clip())
    ids = torch.tensor([[0, 4, 9, 17], [1, 2, 3, 16]])
    both = vit(gather(tokens, ids), at[ids])[-1]
    for row in range(2):
        alone = vit(tokens[row : row + 1, ids[row]], at.coordinates[ids[row]])[-1]
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_autocast_to_bf16_runs_and_stays_near_fp32() -> None:
    vit = small()
    exact = vit(*vit.tokenise(clip()))[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = vit(*vit.tokenise(clip()))[-1]
    assert (exact - rounded.float()).abs().mean() < 0.02  # features have unit variance; bf16 has 8 bits


def test_residual_branches_start_smaller_with_depth() -> None:
    run = resolve("demo", {})
    blocks = build(run).encoder.blocks
    for place, block in enumerate(blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert float(weight.detach().std()) == pytest.approx(0.02 / (2 * place) ** 0.5, rel=0.05)
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)

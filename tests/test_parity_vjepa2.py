"""Encoder and predictor beside VJEPA2Model of transformers, with the same random weights."""

import os

import pytest
import torch
from torch import Tensor

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import VJEPA2Config, VJEPA2Model

from rayjepa.config import ModelConfig, PredictorConfig
from rayjepa.interop.names import VIDEO_ENCODER, VIDEO_PREDICTOR, inverse, qkv_fused, renamed
from rayjepa.model import Predictor, Vit
from rayjepa.model.vit import gather

pytestmark = pytest.mark.slow  # transformers takes five seconds to import

ATOL = {"input": 1e-6, "fp32": 3e-6}
"""By model.rope_table. Ours rounds the two products of a rotation as one, which is a rounding less than theirs."""
TABLES = pytest.mark.parametrize("table", ATOL)

MODEL = {"tubelet": 2, "patch_px": 4, "width": 96, "depth": 3, "heads": 3, "rope_pairing": "tiled"}
GRID = (4, 5, 5)


@pytest.fixture(scope="module")
def theirs() -> VJEPA2Model:
    torch.manual_seed(0)
    cfg = VJEPA2Config(
        patch_size=4, crop_size=20, frames_per_clip=8, tubelet_size=2, hidden_size=96, num_attention_heads=3,
        num_hidden_layers=3, pred_hidden_size=48, pred_num_attention_heads=2, pred_num_hidden_layers=2,
        pred_num_mask_tokens=4, initializer_range=0.06,
    )  # fmt: skip
    model = VJEPA2Model(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also norms, biases and mask tokens
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    return model


def encoder_of(theirs: VJEPA2Model, **model: object) -> Vit:
    ours = Vit(ModelConfig(**MODEL, **model)).eval()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("encoder.")}
    ours.load_state_dict(qkv_fused(renamed(state, inverse(VIDEO_ENCODER))))
    return ours


def predictor_of(theirs: VJEPA2Model, **model: object) -> Predictor:
    cfg = PredictorConfig(width=48, depth=2, heads=2)
    ours = Predictor(cfg, model=ModelConfig(**MODEL, **model), mask_tokens=4).eval()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("predictor.")}
    tokens = state.pop("predictor.embeddings.mask_tokens")
    state = qkv_fused(renamed(state, inverse(VIDEO_PREDICTOR)))
    ours.load_state_dict(state | {f"mask_tokens.{i}": token for i, token in enumerate(tokens)})
    return ours


def clip(frames: int = 8) -> Tensor:
    return torch.randn(2, 3, frames, 20, 20, generator=torch.Generator().manual_seed(frames))


def ids(seed: int, *, rising: bool = True) -> tuple[Tensor, Tensor]:
    """Disjoint tokens of each clip for context and target."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(100, generator=generator) for _ in range(2)])
    parts = (rows[:, :30], rows[:, 30:75])
    return tuple(part.sort(dim=1).values for part in parts) if rising else parts


def by_hand(theirs: VJEPA2Model, views: Tensor, seen: Tensor) -> Tensor:
    """Their layers on the seen tokens alone, as in training; their own forward pass hides tokens after the encoder."""
    x = theirs.encoder.embeddings(views.transpose(1, 2))
    x = x.gather(1, seen[..., None].expand(-1, -1, x.shape[-1]))
    for layer in theirs.encoder.layer:
        x = layer(x, seen)[0]
    return theirs.encoder.layernorm(x)


@TABLES
@pytest.mark.parametrize("frames", [8, 4, 16])
def test_features_of_a_whole_clip_are_theirs_at_any_length(theirs: VJEPA2Model, frames: int, table: str) -> None:
    ours = encoder_of(theirs, rope_table=table)
    with torch.no_grad():
        expected = theirs(pixel_values_videos=clip(frames).transpose(1, 2), skip_predictor=True).last_hidden_state
        found = ours(*ours.tokenise(clip(frames)))[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL[table])


@TABLES
@pytest.mark.parametrize("rising", [True, False])
def test_predictions_are_theirs_with_mask_token_1_in_any_order_of_tokens(
    theirs: VJEPA2Model, rising: bool, table: str
) -> None:
    encoder, predictor = encoder_of(theirs, rope_table=table), predictor_of(theirs, rope_table=table)
    context, target = ids(1, rising=rising)
    with torch.no_grad():
        said = theirs(pixel_values_videos=clip().transpose(1, 2), context_mask=[context], target_mask=[target])
        tokens, at = encoder.tokenise(clip())
        seen = gather(encoder(tokens, at)[-1], context)
        found = predictor(seen, at[context], at[target], mask_token=1)
    torch.testing.assert_close(found, said.predictor_output.last_hidden_state, rtol=0, atol=ATOL[table])


@TABLES
def test_features_and_gradients_of_seen_tokens_alone_are_those_of_their_layers(theirs: VJEPA2Model, table: str) -> None:
    ours, (seen, _) = encoder_of(theirs, rope_table=table), ids(2)
    tokens, at = ours.tokenise(clip())
    found, expected = ours(gather(tokens, seen), at[seen])[-1], by_hand(theirs, clip(), seen)
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL[table])
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    for features in (found, expected):
        (features * weight).mean().backward()
    grads = {name: p.grad for name, p in theirs.encoder.named_parameters(prefix="encoder")}
    theirs.zero_grad()
    wanted = qkv_fused(renamed(grads, inverse(VIDEO_ENCODER)))
    assert wanted.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-6)


def test_features_of_all_tokens_are_not_those_of_seen_tokens_alone(theirs: VJEPA2Model) -> None:
    """What would pass unseen if the encoder's input were not masked."""
    seen, _ = ids(2)
    with torch.no_grad():
        whole = theirs(pixel_values_videos=clip().transpose(1, 2), skip_predictor=True).last_hidden_state
        assert (gather(whole, seen) - by_hand(theirs, clip(), seen)).abs().max() > 0.01


def test_bf16_is_theirs_with_their_table_and_near_it_with_ours(theirs: VJEPA2Model) -> None:
    seen, _ = ids(4)

    def features(ours: Vit) -> Tensor:
        tokens, at = ours.tokenise(clip())
        return ours(gather(tokens, seen), at[seen])[-1]

    same, better = encoder_of(theirs, rope_table="input"), encoder_of(theirs)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, equal, near = by_hand(theirs, clip(), seen), features(same), features(better)
    assert torch.equal(equal, expected)
    assert not torch.equal(near, expected)
    assert (near.float() - expected.float()).abs().mean() < 2**-7  # a unit in the last place of bf16 above 1


def test_another_resolution_is_theirs_only_if_they_are_configured_for_it(theirs: VJEPA2Model) -> None:
    """Their positions come from the configured crop, ours from the clip."""
    cfg = VJEPA2Config(**{**theirs.config.to_dict(), "crop_size": 28})
    larger = VJEPA2Model(cfg).eval()
    larger.load_state_dict(theirs.state_dict())
    ours, wide = (
        encoder_of(theirs, rope_table="input"),
        torch.randn(1, 3, 8, 28, 28, generator=torch.Generator().manual_seed(5)),
    )
    with torch.no_grad():
        found = ours(*ours.tokenise(wide))[-1]
        right, wrong = (m.encoder(wide.transpose(1, 2)).last_hidden_state for m in (larger, theirs))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-6)
    assert (found - wrong).abs().max() > 1e-3

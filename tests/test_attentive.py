import math

import pytest
import torch
from torch import nn

from rayjepa.model.attentive import AttentiveProbe

WIDTH, CLASSES = 24, 5


def published(heads: int, eps: float) -> nn.Module:
    """The port of V-JEPA 2's classifier that users get, of random weights; its encoder has one block."""
    import transformers

    cfg = transformers.VJEPA2Config(
        crop_size=16, patch_size=8, tubelet_size=2, frames_per_clip=4, hidden_size=WIDTH, num_attention_heads=heads,
        num_hidden_layers=1, num_pooler_layers=3, pred_hidden_size=12, pred_num_attention_heads=2,
        pred_num_hidden_layers=1, layer_norm_eps=eps, num_labels=CLASSES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.VJEPA2ForVideoClassification(cfg).eval()
    for parameter in [*model.pooler.parameters(), *model.classifier.parameters()]:
        nn.init.normal_(parameter, std=0.5)  # as large as trained ones, and no bias or query is 0
    return model


def taken_from(model: nn.Module, heads: int) -> AttentiveProbe:
    """Ours with its weights, under Meta's names."""
    theirs = {**model.pooler.state_dict(prefix="pooler."), **model.classifier.state_dict(prefix="linear.")}
    names = {
        "cross_attention_layer": "cross_attention_block", "self_attention_layers": "blocks", "layer_norm": "norm",
        "self_attn": "attn", "out_proj": "proj", "cross_attn": "xattn", "xattn.q_proj": "xattn.q",
    }  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for name, tensor in theirs.items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    for block in range(3):
        for part in ("weight", "bias"):
            at = f"pooler.blocks.{block}.attn."
            state[f"{at}qkv.{part}"] = torch.cat([state.pop(f"{at}{k}_proj.{part}") for k in "qkv"])
    for part in ("weight", "bias"):
        at = "pooler.cross_attention_block.xattn."
        state[f"{at}kv.{part}"] = torch.cat([state.pop(f"{at}{k}_proj.{part}") for k in "kv"])
    ours = AttentiveProbe(WIDTH, classes=CLASSES, heads=heads)
    ours.load_state_dict(state)
    return ours


@torch.no_grad()
def test_it_scores_as_the_published_classifier_with_equal_heads_and_epsilon() -> None:
    model, tokens = published(heads=2, eps=1e-5), torch.randn(3, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    theirs = model.classifier(model.pooler(tokens))
    torch.testing.assert_close(taken_from(model, heads=2)(tokens), theirs, rtol=0, atol=1e-5)
    clips = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    features = model.vjepa2(clips, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(taken_from(model, heads=2)(features), model(clips).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_encoders_head_count_gives_other_scores_with_the_same_weights() -> None:
    """The port's pooler takes the encoder's heads, Meta's probes have 16: shapes fit, scores do not."""
    model, tokens = published(heads=3, eps=1e-5), torch.randn(3, 8, WIDTH, generator=torch.Generator().manual_seed(1))
    theirs = model.classifier(model.pooler(tokens))
    assert (taken_from(model, heads=2)(tokens) - theirs).abs().max() > 0.1
    torch.testing.assert_close(taken_from(model, heads=3)(tokens), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "millions"), [(1024, 49.5), (1408, 93.5)])
def test_it_is_as_large_as_the_published_ones(width: int, millions: float) -> None:
    with torch.device("meta"):
        probe = AttentiveProbe(width, classes=174)
    assert sum(p.numel() for p in probe.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_it_starts_from_a_seed_with_its_residual_branches_scaled_down_by_depth() -> None:
    probe, twin = AttentiveProbe(64, classes=3, heads=4), AttentiveProbe(64, classes=3, heads=4)
    probe.initialise(7)
    twin.initialise(7)
    assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), twin.parameters(), strict=True))
    last, cross = probe.pooler.blocks[2], probe.pooler.cross_attention_block
    for layer in (last.mlp.fc2, last.attn.proj, cross.mlp.fc2):
        assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert probe.pooler.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert probe.pooler.query_tokens.std().item() > 0


def test_heads_that_do_not_divide_the_width_are_the_users_mistake() -> None:
    with pytest.raises(ValueError, match="16 heads does not fit width 24"):
        AttentiveProbe(24, classes=2)

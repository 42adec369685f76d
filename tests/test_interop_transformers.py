"""Against transformers itself, on random weights; nothing is fetched."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import IMAGE, made, same
from test_interop_folders import published

from rayjepa.interop import Weights, read_weights
from rayjepa.interop.encoder import Encoder
from rayjepa.interop.framing import framed
from rayjepa.model import Predictor
from rayjepa.model.places import raster

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers

pytestmark = pytest.mark.slow

EXACT = 1e-6
GREY = 1 / 255 / 0.224
"""One grey level of the colour with the least standard deviation, normalised."""


def loaded(kind: Any, folder: Path) -> Any:
    """The model, with every tensor from the folder and none left over."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def predictor_of(weights: Weights) -> Predictor:
    assert weights.predictor is not None
    assert weights.predictor_state is not None
    tokens = sum(name.startswith("mask_tokens.") for name in weights.predictor_state)
    predictor = Predictor(weights.predictor, model=weights.model, mask_tokens=tokens)
    predictor.load_state_dict(weights.predictor_state)
    return predictor.eval()


@torch.no_grad()
@pytest.mark.parametrize("which", ["target", "context"])
@pytest.mark.parametrize("frames", [2, 4, 8])
def test_our_folder_gives_vjepa2model_our_features(tmp_path: Path, which: Any, frames: int) -> None:
    ours = made(mask_tokens=3)
    model = loaded(transformers.AutoModel, published(ours, tmp_path / "hf", which=which))
    assert type(model).__name__ == "VJEPA2Model"
    clips = torch.randn(2, 3, frames, 32, 32)
    theirs = model(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert (Encoder(ours, which).encode(clips) - theirs).abs().max() <= EXACT


@torch.no_grad()
def test_our_folder_gives_vjepa2model_our_predictions_by_mask_token_1(tmp_path: Path) -> None:
    ours = made(mask_tokens=3)
    model = loaded(transformers.VJEPA2Model, published(ours, tmp_path / "hf"))
    clips = torch.randn(2, 3, 4, 32, 32)
    order = torch.stack([torch.randperm(32) for _ in range(2)])
    context, target = order[:, :12].sort().values, order[:, 12:25]  # the target unsorted
    out = model(clips.transpose(1, 2), context_mask=[context], target_mask=[target])
    at = raster((2, 4, 4), device=torch.device("cpu"))
    features = Encoder(ours).encode(clips)
    seen = features.gather(1, context.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    guessed = predictor_of(ours)(seen, at[context], at[target], mask_token=1)
    assert (guessed - out.predictor_output.last_hidden_state).abs().max() <= EXACT


@torch.no_grad()
def test_a_folder_that_transformers_wrote_gives_us_its_features(tmp_path: Path) -> None:
    config = transformers.VJEPA2Config(
        crop_size=32,
        patch_size=8,
        frames_per_clip=4,
        hidden_size=44,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=48 / 11,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    model = transformers.VJEPA2Model(config).eval()
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    clips = torch.randn(1, 3, 4, 32, 32)
    theirs = model(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert (Encoder(weights).encode(clips) - theirs).abs().max() <= EXACT
    assert weights.predictor_state is not None
    assert len([name for name in weights.predictor_state if name.startswith("mask_tokens.")]) == 10
    again = published(weights, tmp_path / "again")
    state = loaded(transformers.VJEPA2Model, again).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_classifier_gives_its_encoder_and_says_what_it_loses(tmp_path: Path) -> None:
    config = transformers.VJEPA2Config(
        crop_size=32,
        patch_size=8,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=1,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
    )
    classifier = transformers.VJEPA2ForVideoClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert any("left out: classifier.bias" in note for note in weights.notes)
    clips = torch.randn(1, 3, 4, 32, 32)
    theirs = classifier.vjepa2(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert (Encoder(weights).encode(clips) - theirs).abs().max() <= EXACT


@torch.no_grad()
def test_ijepamodel_and_ours_give_the_same_features_both_ways(tmp_path: Path) -> None:
    ours = made(**IMAGE)
    folder = published(ours, tmp_path / "hf")
    model = loaded(transformers.AutoModel, folder)
    assert type(model).__name__ == "IJepaModel"
    assert model.config.layer_norm_eps == 1e-6
    images = torch.randn(2, 3, 1, 32, 32)
    theirs = model(images[:, :, 0]).last_hidden_state
    assert (Encoder(ours).encode(images) - theirs).abs().max() <= EXACT
    model.save_pretrained(tmp_path / "back")
    back = read_weights(tmp_path / "back")
    assert same(back.encoder, ours.target)
    assert back.model == ours.model


def test_an_eps_that_is_not_ours_is_said(tmp_path: Path) -> None:
    folder = published(made(**IMAGE), tmp_path / "hf")
    model = transformers.IJepaModel.from_pretrained(folder)
    model.config.layer_norm_eps = 1e-12
    model.save_pretrained(tmp_path / "eps")
    assert any("layer_norm_eps is 1e-12" in note for note in read_weights(tmp_path / "eps").notes)


@pytest.mark.parametrize("size", [(48, 75), (90, 41), (36, 36), (20, 31)], ids=str)
def test_our_evaluation_frames_are_those_of_pillow_to_a_grey_level(tmp_path: Path, size: tuple[int, int]) -> None:
    """Pillow rounds to bytes after each of its two passes: half a level twice, hardly ever both in full."""
    folder = published(made(**IMAGE), tmp_path / "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
    theirs = torch.as_tensor(processor(image.numpy(), return_tensors="pt")["pixel_values"])
    ours = framed(image[None, None], 32)[:, :, 0]
    assert (ours - theirs).abs().max() <= 1.1 * GREY
    assert (ours - theirs).abs().mean() <= 0.5 * GREY

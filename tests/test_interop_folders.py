import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import FIXED_CODE, IMAGE, made, same
from safetensors.torch import load_file, save_file

from rayjepa.interop import Given, Weights, publish, read_weights, write_weights
from rayjepa.interop import meta as meta_files
from rayjepa.interop.names import IMAGE_MEMORY, inverse, renamed


def published(weights: Weights, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    publish.write(weights, folder, which=options.pop("which", "target"), **options)
    return folder


def test_ours_to_meta_to_hugging_face_to_ours_is_bit_equal(tmp_path: Path) -> None:
    ours = made(mask_tokens=6)
    path, _ = meta_files.write(ours, tmp_path, which=None)
    meta = read_weights(path, given=Given(heads=2, predictor_heads=2, frames=4, size_px=32))
    folder = published(meta, tmp_path / "hf")
    assert load_file(folder / "model.safetensors")["predictor.embeddings.mask_tokens"].shape == (10, 1, 1, 24)
    again = read_weights(folder)
    assert same(again.encoder, ours.target)
    assert same(again.predictor_state, ours.predictor_state)
    assert again.target is None
    assert (again.model, again.clip.size_px) == (meta.model, 32)


@pytest.mark.parametrize("knobs", [{}, FIXED_CODE, IMAGE], ids=["rope", "sincos", "image"])
def test_a_folder_of_ours_keeps_everything(tmp_path: Path, knobs: dict[str, Any]) -> None:
    ours = made(**knobs)
    write_weights(ours, tmp_path / "own")
    again = read_weights(tmp_path / "own")
    assert same(again.encoder, ours.encoder)
    assert same(again.target, ours.target)
    assert same(again.predictor_state, ours.predictor_state)
    assert (again.model, again.predictor, again.clip) == (ours.model, ours.predictor, ours.clip)
    with pytest.raises(ValueError, match="is not empty"):
        write_weights(ours, tmp_path / "own")


def test_the_tokens_beyond_ours_are_token_0_or_all_are_the_one_asked_for(tmp_path: Path) -> None:
    ours = made(mask_tokens=6)
    assert ours.predictor_state is not None
    first, second = ours.predictor_state["mask_tokens.0"], ours.predictor_state["mask_tokens.1"]
    padded = load_file(published(ours, tmp_path / "a") / "model.safetensors")["predictor.embeddings.mask_tokens"]
    assert torch.equal(padded[1], second)
    assert all(torch.equal(token, first) for token in padded[6:])
    chosen = load_file(published(ours, tmp_path / "b", mask_token=1) / "model.safetensors")
    assert all(torch.equal(token, second) for token in chosen["predictor.embeddings.mask_tokens"])
    with pytest.raises(ValueError, match="mask token 6: the predictor has tokens 0 to 5"):
        published(ours, tmp_path / "c", mask_token=6)


def test_an_untrained_token_1_is_said(tmp_path: Path) -> None:
    ours = made(mask_tokens=2)
    assert ours.predictor_state is not None
    ours.predictor_state["mask_tokens.1"].zero_()
    assert any("--mask-token 0" in note for note in publish.write(ours, tmp_path, which="target"))


def test_both_families_of_i_jepas_names_are_read(tmp_path: Path) -> None:
    ours = made(**IMAGE)
    folder = published(ours, tmp_path / "disk")
    assert same(read_weights(folder).encoder, ours.target)
    state = load_file(folder / "model.safetensors")
    in_memory = renamed(state, inverse(IMAGE_MEMORY))
    assert "layers.0.attention.q_proj.weight" in in_memory
    save_file(in_memory, folder / "model.safetensors", metadata={"format": "pt"})
    assert same(read_weights(folder).encoder, ours.target)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (FIXED_CODE, "no class for a V-JEPA 1 video model.*--to meta or --to torch"),
        ({"model.rope_pairing": "interleaved"}, "rope_pairing=interleaved.*tiled angles only"),
        ({"model.mlp": "swiglu"}, "model.mlp=swiglu.*GELU only"),
    ],
    ids=["sincos", "interleaved", "swiglu"],
)
def test_what_transformers_has_no_class_for_is_refused(tmp_path: Path, knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        publish.write(made(**knobs), tmp_path, which="target")
    assert list(tmp_path.iterdir()) == []


def test_a_tokeniser_of_images_is_left_out_and_said_unless_it_is_all_that_was_trained(tmp_path: Path) -> None:
    streams = [{"name": "clips", "weight": 1, "set": {}}, {"name": "images", "weight": 1, "set": {"data.frames": 1}}]
    notes = publish.write(made(streams=streams), tmp_path, which="target")
    assert any("patch_embed_image" in note for note in notes)
    assert read_weights(tmp_path).encoder.keys().isdisjoint({"patch_embed_image.proj.weight"})
    with pytest.raises(ValueError, match="have seen images only"):
        publish.write(made(data__frames=1), tmp_path, which="target")


def test_missing_and_extra_tensors_of_a_folder_are_named(tmp_path: Path) -> None:
    folder = published(made(), tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.attention.key.bias"]
    state["encoder.layer.0.gate"] = torch.zeros(2)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks blocks\.1\.attn\.qkv\.bias.*blocks\.1\.attn\.query\.bias"):
        read_weights(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; give a run folder"):
        read_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no weights; give a run folder"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="model_type 'vit'"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    with pytest.raises(ValueError, match=r"pickles .* are not read"):
        read_weights(tmp_path)


def test_a_learned_code_of_images_is_refused(tmp_path: Path) -> None:
    folder = published(made(**IMAGE), tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    state["embeddings.position_embeddings"] += 0.01
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not the fixed sine-cosine code"):
        read_weights(folder)


def test_the_processor_of_a_folder_is_that_of_evaluation(tmp_path: Path) -> None:
    config = json.loads((published(made(), tmp_path / "hf") / "video_preprocessor_config.json").read_text())
    assert config["video_processor_type"] == "VJEPA2VideoProcessor"
    assert config["size"] == {"shortest_edge": int(32 * 256 / 224)}
    assert config["crop_size"] == {"height": 32, "width": 32}
    image = json.loads((published(made(**IMAGE), tmp_path / "image") / "preprocessor_config.json").read_text())
    assert image["image_processor_type"] == "ViTImageProcessor"

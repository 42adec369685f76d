import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import FIXED_CODE, IMAGE, made, same

from rayjepa.interop import Given, read_weights
from rayjepa.interop import meta as meta_files
from rayjepa.interop.layout import code_of

GIVEN = Given(heads=2, predictor_heads=2, frames=4, size_px=32)


@pytest.mark.parametrize("knobs", [{}, FIXED_CODE, {"model.mlp": "swiglu"}], ids=["rope", "sincos", "swiglu"])
def test_video_weights_survive_metas_layout_bit_by_bit(tmp_path: Path, knobs: dict[str, Any]) -> None:
    ours = made(**knobs)
    path, _ = meta_files.write(ours, tmp_path, which=None)
    again = read_weights(path, given=GIVEN)
    assert same(again.encoder, ours.encoder)
    assert same(again.target, ours.target)
    assert same(again.predictor_state, ours.predictor_state)
    assert (again.model.position, again.model.mlp, again.model.mlp_ratio) == (
        ours.model.position,
        ours.model.mlp,
        ours.model.mlp_ratio,
    )
    assert again.model.sincos_grid == ours.model.sincos_grid
    assert again.clip == ours.clip


def test_image_weights_survive_i_jepas_layout_bit_by_bit(tmp_path: Path) -> None:
    ours = made(**IMAGE)
    path, _ = meta_files.write(ours, tmp_path, which=None)
    state = torch.load(path, weights_only=True)
    assert state["encoder"]["module.patch_embed.proj.weight"].shape == (48, 3, 8, 8)
    assert state["encoder"]["module.pos_embed"].shape == (1, 16, 48)
    assert {"module.mask_token", "module.predictor_pos_embed"} <= state["predictor"].keys()
    again = read_weights(path, given=GIVEN)
    assert same(again.encoder, ours.encoder)
    assert same(again.predictor_state, ours.predictor_state)
    assert (again.model.tubelet, again.model.sincos_grid, again.clip.frames) == (1, (1, 4, 4), 1)


def test_a_file_has_the_prefixes_and_names_that_metas_loaders_strip(tmp_path: Path) -> None:
    path, _ = meta_files.write(made(**FIXED_CODE), tmp_path, which="target")
    assert path.name == "jepa-latest.pth.tar"
    state = torch.load(path, weights_only=True)
    assert state.keys() >= {"encoder", "target_encoder", "predictor", "opt", "scaler", "epoch"}
    encoder = {name.removeprefix("module.backbone.") for name in state["encoder"]}
    assert {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias", "norm.weight"} <= encoder
    assert all(torch.equal(state["encoder"][name], state["target_encoder"][name]) for name in state["encoder"])
    predictor = {name.removeprefix("module.backbone.") for name in state["predictor"]}
    assert {"mask_tokens.0", "mask_tokens.1", "predictor_pos_embed", "predictor_blocks.0.mlp.fc2.bias"} <= predictor


def test_a_stale_code_is_left_behind_where_the_model_is_rotary(tmp_path: Path) -> None:
    sincos = made(**FIXED_CODE)
    path, _ = meta_files.write(sincos, tmp_path, which=None)
    guessed = read_weights(path, given=GIVEN)
    assert guessed.model.position == "sincos"
    assert any("--position rope" in note for note in guessed.notes)
    told = read_weights(path, given=Given(heads=2, predictor_heads=2, position="rope", frames=4, size_px=32))
    assert told.model.position == "rope"
    assert same(told.encoder, sincos.encoder)


def test_the_code_of_a_file_tells_its_axes(tmp_path: Path) -> None:
    ours = made(**FIXED_CODE, model__sincos_axes="time_half")
    path, _ = meta_files.write(ours, tmp_path, which=None)
    assert read_weights(path, given=GIVEN).model.sincos_axes == "time_half"
    state = torch.load(path, weights_only=True)
    state["encoder"]["module.backbone.pos_embed"] = code_of(ours.model) + 0.01
    torch.save(state, path)
    with pytest.raises(ValueError, match="not the fixed sine-cosine code of a grid of 2 x 4 x 4"):
        read_weights(path, given=GIVEN)


def test_heads_of_released_sizes_are_known_and_others_asked_for(tmp_path: Path) -> None:
    path, _ = meta_files.write(made(), tmp_path, which=None)
    with pytest.raises(ValueError, match=r"width 48 and depth 2 .*--heads N"):
        read_weights(path)
    with pytest.raises(ValueError, match=r"predictor of width 24 .*--predictor-heads N"):
        read_weights(path, given=Given(heads=2))
    small = made(model__width=192, model__depth=12, model__heads=3, predictor__width=384, predictor__heads=12)
    (tmp_path / "small").mkdir()
    path, _ = meta_files.write(small, tmp_path / "small", which=None)
    again = read_weights(path)
    assert again.predictor is not None
    assert (again.model.heads, again.predictor.heads) == (3, 12)
    assert any("heads: 3" in note for note in again.notes)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    path, _ = meta_files.write(made(), tmp_path, which=None)
    state = torch.load(path, weights_only=True)
    encoder = state["encoder"]
    del encoder["module.backbone.norm.bias"]
    encoder["module.backbone.cls_token"] = torch.zeros(1, 1, 48)
    encoder["module.backbone.blocks.1.norm1.weight"] = torch.zeros(7)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lacks norm\.bias.*has cls_token.*blocks\.1\.norm1\.weight \[7\] for \[48\]"):
        read_weights(path, given=GIVEN)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"encoder": {"x": torch.zeros(1)}, "note": _Code()}, path)
    with pytest.raises(ValueError, match="a pickle can run code"):
        read_weights(path)
    path.write_bytes(pickle.dumps({"encoder": 1}))
    with pytest.raises((ValueError, RuntimeError), match=r"bad\.pt"):
        read_weights(path)
    assert "this ran" not in capsys.readouterr().out


def test_interleaved_angles_have_no_place_in_metas_code(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rope_pairing=interleaved.*--to torch"):
        meta_files.write(made(model__rope_pairing="interleaved"), tmp_path, which=None)


def test_an_action_conditioned_predictor_is_left_out(tmp_path: Path) -> None:
    path, _ = meta_files.write(made(), tmp_path, which=None)
    state = torch.load(path, weights_only=True)
    state["predictor"]["module.action_encoder.weight"] = torch.zeros(24, 7)
    torch.save(state, path)
    again = read_weights(path, given=GIVEN)
    assert again.predictor is None
    assert any("V-JEPA 2-AC" in note for note in again.notes)

"""Published sizes by name, and what else a model may be made of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rayjepa.cli import overrides_from
from rayjepa.config import ConfigError, dump, models, resolve
from rayjepa.config.space import parse_space
from rayjepa.config.sweep import plan_sweep
from rayjepa.model import Vit, build
from rayjepa.model.blocks import Block

PARAMETERS = {
    "tiny": 5_633_856,
    "small": 21_884_544,
    "base": 86_236_416,
    "large": 303_885_312,
    "huge": 631_648_000,
    "giant": 1_012_173_952,
    "giant16": 1_012_173_952,
    "gigantic": 1_843_923_840,
    "gigantic16": 1_843_923_840,
}


def test_every_size_has_its_published_parameters() -> None:
    assert {name: parameters(model=name) for name in models()} == PARAMETERS


def test_a_gigantic_with_the_published_mistake_has_the_parameters_of_that() -> None:
    assert parameters(model="gigantic", model__mlp_ratio=4) == 1_598_483_328


def parameters(**given: object) -> int:
    with torch.device("meta"):
        vit = Vit(resolve(None, {key.replace("__", "."): value for key, value in given.items()}).model)
    return sum(p.numel() for p in vit.parameters())


def test_a_size_stands_for_its_keys_where_it_stands(tmp_path: Path) -> None:
    before = resolve("tiny", {"model.depth": 3, "model.patch_px": 4, "model": "small"}).model
    assert (before.depth, before.width, before.patch_px) == (12, 384, 4)
    after = resolve("tiny", {"model": "small", "model.depth": 3}).model
    assert (after.depth, after.width) == (3, 384)
    words = overrides_from(["model.depth=3", "model=small", "model.depth=5"])
    assert resolve("tiny", words).model.depth == 5
    preset, own = tmp_path / "preset.yaml", tmp_path / "own.yaml"
    own.write_text("{width: 48, heads: 4}")
    preset.write_text(f"model: {own}\nmodel.depth: 1")
    written = resolve(str(preset), {})
    assert (written.model.width, written.model.heads, written.model.depth) == (48, 4, 1)
    assert resolve(None, dump(written)) == written


def test_a_wrong_size_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'hug': .*; nearest: huge"):
        resolve("tiny", {"model": "hug"})
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("{widht: 48}")
    with pytest.raises(ConfigError, match=r"unknown key model\.widht; nearest: model\.width"):
        resolve("tiny", {"model": str(wrong)})
    with pytest.raises(ConfigError, match="model is a section"):
        resolve("tiny", {"model": 5})


def test_all_trials_of_a_sweep_may_have_a_size_and_none_its_own() -> None:
    axes = {"optim.lr": {"loguniform": [1e-4, 1e-3]}}
    space = parse_space({"axes": axes, "grace_steps": 2, "fixed": {"model": "small", "model.depth": 2}})
    assert plan_sweep("tiny", space, {}).trial({"optim.lr": 2e-4}, name="a", out=Path("b")).model.width == 384
    sized = parse_space({"axes": {"model": {"choice": ["tiny", "small"]}}, "grace_steps": 2})
    with pytest.raises(ConfigError, match="model is no axis of a sweep"):
        plan_sweep("tiny", sized, {})


def test_a_gated_mlp_computes_its_equation_at_two_thirds_of_the_width() -> None:
    torch.manual_seed(0)
    mlp = Block(24, heads=2, mlp_ratio=4.0, mlp="swiglu").mlp
    assert [tuple(layer.weight.shape) for layer in (mlp.fc1, mlp.fc2, mlp.fc3)] == [(64, 24), (64, 24), (24, 64)]
    assert Block(32, heads=2, mlp_ratio=4.0, mlp="swiglu").mlp.fc1.weight.shape == (88, 32)  # 85 to a multiple of 8
    x = torch.randn(2, 3, 24)
    opened = F.linear(x, mlp.fc1.weight, mlp.fc1.bias)
    gated = opened * opened.sigmoid() * F.linear(x, mlp.fc2.weight, mlp.fc2.bias)
    torch.testing.assert_close(mlp(x), F.linear(gated, mlp.fc3.weight, mlp.fc3.bias))


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_the_last_layers_of_both_branches_are_rescaled_or_not(mlp: str) -> None:
    run = {"model.depth": 3, "model.width": 48, "predictor.width": 48, "predictor.depth": 2, "model.mlp": mlp}
    for rescale in (True, False):
        jepa = build(resolve("tiny", {**run, "model.init_rescale": rescale}))
        for blocks in (jepa.encoder.blocks, jepa.predictor.predictor_blocks):
            for place, block in enumerate(blocks, start=1):
                last = block.mlp.fc2 if mlp == "gelu" else block.mlp.fc3
                std = 0.02 / (2 * place) ** 0.5 if rescale else 0.02
                for layer in (block.attn.proj, last):
                    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.1)
                assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_blocks_that_stage_3_cuts_to_pieces_are_not_compiled() -> None:
    with pytest.raises(ConfigError, match=r"gains nothing at zero\.stage=3"):
        resolve("tiny", {"train.compile_blocks": True, "zero.stage": 3})


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_under_the_same_names() -> None:
    """In a process of its own: what checks shapes at each call here cannot be compiled."""
    script = Path(__file__).with_name("compiled_blocks.py")
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    assert [each["names"] for each in found] == [True, True]
    assert [each["graphs"] > 0 for each in found] == [True, True]
    assert max(each["difference"] for each in found) < 1e-5

"""One door, strict, with the dotted key in every message."""

import dataclasses

import pytest
import yaml

from rayjepa.config import ConfigError, describe, dump, presets, resolve, to_yaml


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_survives_dump_and_yaml(preset: str) -> None:
    run = resolve(preset, {})
    assert resolve(None, dump(run)) == run
    assert resolve(None, yaml.safe_load(to_yaml(run))) == run


def test_the_same_key_means_the_same_in_text_file_and_sweep(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim:\n  lr: 1e-5\n")  # YAML 1.1 reads this as text
    by_file = resolve(str(file), {})
    assert by_file == resolve(None, {"optim.lr": "1e-5"}) == resolve(None, {"optim.lr": 1e-5})
    assert by_file.optim.lr == 1e-5


@pytest.mark.parametrize("value", ["none", "raster"])
def test_none_is_a_word_where_it_is_a_choice_and_nothing_where_it_is_not(value: str, tmp_path) -> None:
    run = resolve("tiny", {"masks.truncate": value, "masks.predict": "none"})
    assert (run.masks.truncate, run.masks.predict) == (value, None)
    (tmp_path / "mine.yaml").write_text(to_yaml(run))
    assert resolve(str(tmp_path / "mine.yaml"), {}) == run


def test_a_later_override_wins_over_the_preset() -> None:
    assert resolve("tiny", {"train.steps": "3"}).train.steps == 3
    assert resolve("tiny", {"ema.final_momentum": "none"}).ema.final_momentum is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data.fraems": 16}, "unknown key data.fraems; nearest: data.frames"),
        ({"lr": 1}, "nearest: optim.lr"),
        ({"optim.lr": "abc"}, "optim.lr='abc'"),
        ({"optim": 3}, "optim is a section; its keys are optim.lr"),
        ({"data.frames": 15}, "data.frames=15 is neither 1 (images) nor a multiple of model.tubelet=2"),
        ({"data.frames": 3.5}, "data.frames=3.5"),
        ({"cluster.workers": -1}, "cluster.workers=-1 must be at least 0"),
        ({"cluster.workers": 3}, "train.clips=4 is not a multiple of 3 worker(s)"),
        ({"masks.kind": "blocks"}, "masks.kind='blocks'"),
        ({"masks.multiblock": "[{blocks: 0}]"}, "blocks=0 must be at least 1"),
        ({"data.window_scale": "[0.5, 0.2]"}, "data.window_scale=[0.5, 0.2]"),
        ({"model.heads": 5}, "is not a multiple of model.heads=5"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_allowed(overrides: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("tiny", overrides)
    assert said in str(error.value)


def test_two_mistakes_are_two_lines() -> None:
    with pytest.raises(ConfigError) as error:
        resolve("tiny", {"optim.lr": "abc", "zero.stage": 9})
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(("name", "said"), [("dmeo", "nearest: demo"), ("no/such.yaml", "neither a file")])
def test_an_unknown_preset_names_the_known_ones(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match="unknown preset") as error:
        resolve(name, {})
    assert said in str(error.value)
    assert "demo" in str(error.value)


def test_every_knob_has_a_sentence() -> None:
    knobs = describe()
    assert len(knobs) > 50
    assert [k.key for k in knobs if not k.help.endswith(".")] == []


def test_a_run_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve("tiny", {}).optim.lr = 3  # type: ignore[misc]


def test_derived_values_follow_the_workers() -> None:
    run = resolve("tiny", {"train.clips": 16, "cluster.workers": 2, "train.accumulation": 4})
    assert (run.micro_batch, run.ranks, run.samples) == (2, 2, run.train.steps * 16)
    assert resolve("tiny", {"cluster.workers": 0}).ranks == 1
    assert run.grid == (2, 4, 4)

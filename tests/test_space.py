"""A space of knobs: every mistake is found before anything starts, and named with what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayjepa.config import ConfigError, resolve
from rayjepa.config.space import Axis, dump_space, parse_space, read_space, spaces
from rayjepa.config.sweep import differences, plan_sweep, read_sweep, sweep_text

TUBE = {"masks.kind": "tube"}
RATIO = {"masks.ratio": {"uniform": [0.6, 0.9]}}


def space(axes: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"axes": RATIO if axes is None else axes, "grace_steps": 4, **fields}


@pytest.mark.parametrize("name", sorted(spaces()))
def test_a_shipped_space_goes_with_the_preset_of_its_name_and_survives_yaml(name: str, tmp_path: Path) -> None:
    shipped = read_space(name)
    assert parse_space(yaml.safe_load(yaml.safe_dump(dump_space(shipped), sort_keys=False))) == shipped
    plan = plan_sweep(name, shipped, {})
    file = tmp_path / "sweep.yaml"
    file.write_text(sweep_text(plan))
    assert read_sweep(file) == plan


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ([], "a space is a mapping"),
        ({"axes": RATIO}, "grace_steps is missing"),
        ({"grace_steps": 4}, "axes is missing"),
        (space(axes={}), "axes is empty"),
        (space(axes={}) | {"axes": [1]}, "axes=[1] must be a mapping"),
        (space(trails=3), "unknown field trails; nearest: trials"),
        (space(trials=0), "trials=0 must be at least 1"),
        (space(concurrent=1.5), "concurrent=1.5 must be a whole number"),
        (space(reduction=1), "reduction=1 must be above 1"),
        (space(mode="highest"), "mode='highest' must be max or min"),
        (space(axes={"masks.ratio": [0.6, 0.9]}), "masks.ratio: write one kind with its values"),
        (space(axes={"masks.ratio": {"unifrom": [0.6, 0.9]}}), "unknown kind unifrom; nearest: uniform"),
        (space(axes={"masks.ratio": {"uniform": 0.6}}), "masks.ratio: uniform=0.6 must be [low, high]"),
        (space(axes={"masks.ratio": {"uniform": [0.6]}}), "must be [low, high]"),
        (space(axes={"masks.ratio": {"uniform": [0.9, 0.6]}}), "0.9, 0.6 do not rise; write the lower one first"),
        (space(axes={"masks.ratio": {"uniform": [0.6, 0.6]}}), "one value goes under `fixed`"),
        (space(axes={"masks.ratio": {"uniform": ["a", 0.6]}}), "'a' is not a number"),
        (space(axes={"masks.ratio": {"uniform": [0.6, float("nan")]}}), "nan is not a number"),
        (space(axes={"optim.lr": {"loguniform": [0, 1]}}), "loguniform needs bounds above 0"),
        (space(axes={"predictor.depth": {"int": [1, 2.5]}}), "2.5 is not a whole number"),
        (space(axes={"predictor.depth": {"int": [1, 4, 2]}}), "steps of 2 do not lead from 1 to 4"),
        (space(axes={"masks.ratio": {"quniform": [0.5, 0.9, 0]}}), "steps of 0.0 do not lead"),
        (space(axes={"objective.kind": {"choice": ["l1"]}}), "at least two different values"),
        (space(axes={"objective.kind": {"choice": ["l1", ["l2"]]}}), "a choice is between single values"),
        (space(fixed=[1]), "fixed=[1] must be a mapping"),
    ],
)
def test_a_mistake_in_a_space_is_named(tree: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(tree)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"masks.ration": {"uniform": [0.6, 0.9]}}, "unknown key masks.ration; nearest: masks.ratio"),
        ({"masks.ratio": {"uniform": [0.6, 1.0]}}, "the space allows masks.ratio=1.0, which no run can have"),
        ({"masks.ratio": {"uniform": [0.0, 0.9]}}, "masks.ratio=0.0 must be in (0, 1)"),
        ({"objective.kind": {"choice": ["l1", "l3"]}}, "the space allows objective.kind=l3"),
        ({"predictor.depth": {"uniform": [1, 4]}}, "takes whole numbers: use int or choice"),
        # Both ends are multiples of predictor.heads=2, the values between them are not.
        ({"predictor.width": {"int": [12, 24]}}, "predictor.width=13 is not a multiple of predictor.heads=2"),
        # Each axis goes alone with the other's preset value; only the corner fails.
        (
            {"predictor.width": {"choice": [18, 20]}, "predictor.heads": {"choice": [2, 3]}},
            "the space allows predictor.width=20, predictor.heads=3, which no run can have",
        ),
        ({"train.steps": {"int": [8, 16]}}, "train.steps is no axis of a sweep: it is the time axis"),
        ({"cluster.workers": {"int": [1, 2]}}, "cluster.workers is no axis of a sweep: it does not change"),
        ({"health.clips": {"int": [8, 16]}}, "scores of two trials would not compare"),
        ({"model.width": {"int": [24, 48, 12]}}, "the ceiling is min(clips, model.width)"),
        ({"data.fps": {"uniform": [4, 8]}}, "scores of two trials would not compare"),
        ({"seed": {"int": [0, 9]}}, "would reward luck"),
        ({"optim": {"uniform": [0.6, 0.9]}}, "optim is a section; its keys are"),
    ],
)
def test_an_axis_is_checked_at_both_ends_between_them_and_with_the_others(axes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_sweep("tiny", parse_space(space(axes=axes, fixed=TUBE)), {})
    assert said in str(caught.value)


def test_an_axis_without_effect_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"masks.ratio would have no effect on any trial: masks.kind=multiblock"):
        plan_sweep("tiny", parse_space(space()), {})
    assert plan_sweep("tiny", parse_space(space()), TUBE).base.masks.kind == "tube"
    with pytest.raises(ConfigError, match=r"masks.kind=multiblock"):
        plan_sweep("tiny", parse_space(space(fixed=TUBE)), {"masks.kind": "multiblock"})


@pytest.mark.parametrize(
    ("fixed", "key", "reason"),
    [
        ({"masks.kind": "ijepa"}, "masks.ratio", "masks.kind=ijepa does not obey it"),
        (TUBE, "masks.truncate", "only multiblock and ijepa do"),
        (TUBE, "masks.ijepa.targets", "only ijepa does"),
        ({"masks.truncate": "none"}, "masks.group_size", "masks.truncate=none does not obey it"),
    ],
)
def test_a_knob_of_masks_is_no_axis_where_the_masks_do_not_obey_it(fixed: dict, key: str, reason: str) -> None:
    values = {"masks.ratio": [0.6, 0.7], "masks.truncate": ["none", "random"]}.get(key, [2, 3])
    with pytest.raises(ConfigError, match=f"{key} would have no effect on any trial: .*{reason}"):
        plan_sweep("tiny", parse_space(space(axes={key: {"choice": values}}, fixed=fixed)), {})


def test_an_axis_takes_no_value_from_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"masks.ratio is an axis of the space"):
        plan_sweep("tiny", parse_space(space(fixed=TUBE)), {"masks.ratio": 0.8})


def test_overrides_come_after_what_the_space_fixes() -> None:
    fixed = TUBE | {"train.steps": 12, "train": {"clips": 8}}
    plan = plan_sweep("tiny", parse_space(space(fixed=fixed)), {"train.steps": "20"})
    assert (plan.base.train.steps, plan.base.train.clips) == (20, 8)


def test_bounds_that_yaml_reads_as_text_are_numbers() -> None:
    axis = parse_space(yaml.safe_load("{axes: {optim.lr: {loguniform: [1e-4, 3e-3]}}, grace_steps: 4}")).axes[0]
    assert axis == Axis(key="optim.lr", kind="loguniform", values=(1e-4, 3e-3))


def test_the_presets_own_values_are_a_trial_where_they_lie_on_the_axes() -> None:
    both = RATIO | {"predictor.depth": {"int": [1, 2]}}
    assert plan_sweep("tiny", parse_space(space(axes=both, fixed=TUBE)), {}).defaults() == {
        "masks.ratio": 0.75,
        "predictor.depth": 1,
    }
    other = {"masks.ratio": {"uniform": [0.8, 0.9]}}
    assert plan_sweep("tiny", parse_space(space(axes=other, fixed=TUBE)), {}).defaults() is None


def test_what_differs_from_the_defaults_is_the_run_again(tmp_path: Path) -> None:
    run = plan_sweep("tiny", parse_space(space(fixed=TUBE)), {}).trial({"masks.ratio": 0.7}, name="x", out=tmp_path)
    again = resolve(None, {**differences(run), "name": "x", "out": str(tmp_path)})
    assert again == run
    assert differences(run)["masks"] == {"kind": "tube", "ratio": 0.7, "group_size": 4}

"""Refused steps, resumes, the loop and the target of every engine at two ranks."""

import dataclasses
import json

import pytest
import torch
from made_clips import SPOILS, made_clips
from stages import CPU, HELD_OUT, KINDS, PERSISTENT, Stages, config, saved_in, whole

from rayjepa.config import resolve
from rayjepa.health import clip_features
from rayjepa.model import build, make_target
from rayjepa.train.checkpoint import read_state, restart_point
from rayjepa.train.history import coverage, read_history
from rayjepa.train.zero import deepspeed_config

LIVES = (*KINDS, *(f"{kind} {how}" for how in ("unlike", "bf16") for kind in KINDS))


@pytest.mark.dist
@pytest.mark.parametrize("life", LIVES)
def test_one_ranks_bad_step_is_refused_on_all_and_leaves_every_bit(life: str, stages: Stages) -> None:
    zero, one = (found[life] for found in stages.two)
    assert zero["reasons"] == one["reasons"]
    for how, refused in zero["reasons"].items():
        assert SPOILS[how] in refused
    assert len(zero["reasons"]) == (2 if "bf16" in life else len(SPOILS))
    assert (zero["changed"], one["changed"]) == ([], [])


@pytest.mark.dist
@pytest.mark.parametrize("life", LIVES)
def test_all_state_is_float32(life: str, stages: Stages) -> None:
    assert [found[life]["dtypes"] for found in stages.two] == [{"torch.float32"}] * 2


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_refused_ones_are_those_of_a_resumed_run_that_never_saw_them(kind: str, stages: Stages) -> None:
    for found in stages.two:
        assert found[kind]["restored"] == []
        assert found[kind]["after"] == found[kind]["after_restore"]
        assert found[kind]["ended"] == []


@pytest.mark.dist
def test_recomputed_blocks_leave_nothing_on_deepspeeds_list_of_running_modules(stages: Stages) -> None:
    for found in stages.two:
        assert len(set(found["zero3 unlike"]["running"])) == 1


@pytest.mark.dist
def test_stage_3_holds_no_whole_target_between_steps(stages: Stages) -> None:
    jepa = build(config())
    trained, followed = ([p.numel() for p in part.parameters()] for part in (jepa, jepa.encoder))
    persistent = [numel for numel in trained if numel <= PERSISTENT]
    assert 0 < len(persistent) < len(trained)
    for found in stages.two:
        assert found["zero2"]["live"] == [sum(trained), sum(followed)]
        assert found["zero3"]["live"] == [sum(persistent), 0]


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_examine_one_target_also_with_unequal_shares(kind: str, stages: Stages) -> None:
    run = config()
    target, saved = make_target(build(run).encoder), whole(saved_in(stages.folder / kind))
    target.encoder.load_state_dict(
        {name: saved["target", name].view_as(p) for name, p in target.encoder.named_parameters()}
    )
    for found in stages.two:
        for clips, features in zip(HELD_OUT, found[kind]["features"], strict=True):
            expected = clip_features(target, [made_clips(run, range(clips))], run, device=CPU)
            torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.dist
def test_the_loop_on_two_ranks_shares_failures_metrics_and_the_wish_to_stop(stages: Stages) -> None:
    zero, one = (found["loop"] for found in stages.two)
    folder = stages.folder / "loop"
    assert zero["finished"] == one["finished"] == 3
    assert zero["failures"] == one["failures"]
    assert [f["uri"] for f in zero["failures"]] == ["bad"]
    assert zero["reports"] == one["reports"]
    assert coverage(folder, 3 * 8) == ([], [])
    saved = restart_point(folder)
    assert saved is not None
    state = read_state(saved)
    assert (state.finished, state.world, state.ledger) == (3, 2, zero["failures"])
    assert [line["trained"] for line in read_history(folder).of("step")] == [[[0, 8]], [[8, 16]], [[16, 24]]]


@pytest.mark.dist
def test_a_rank_that_cannot_write_stops_all_before_the_marker(stages: Stages) -> None:
    said = [found["write_error"]["said"] for found in stages.two]
    assert "another rank could not write its part of the checkpoint" in said[0]
    assert all("No space left on device" in each for each in said)
    assert not (saved_in(stages.folder / "error") / "complete").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_dictionary_is_a_function_of_the_run(stage: int) -> None:
    run = config(f"zero{stage}", world=2, train__precision="bf16")
    made = deepspeed_config(run)
    assert made == deepspeed_config(resolve(None, json.loads(json.dumps(dataclasses.asdict(run), default=str))))
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (2, 2)
    assert (made["zero_optimization"]["stage"], made["gradient_clipping"]) == (stage, 0.0)
    assert made["torch_autocast"]["lower_precision_safe_modules"] == []

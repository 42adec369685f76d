"""Every ZeRO stage against training written out in plain PyTorch, and checkpoints between stages and world sizes."""

import pytest
import torch
from stages import KINDS, MOVES, UNLIKE, Found, Stages, config, mean, saved_in, whole
from written_out import State, WrittenOut

from rayjepa.model import build

pytestmark = pytest.mark.dist

EXACT = 1e-6
"""Float32, the first three steps: additions in another order, before Adam makes more of them where gradients are 0."""
LATER = 1e-5
"""Float32, the next three steps."""
BF16_LOSS = 1e-4
"""Each rank's gradients are rounded to bf16 before they are added."""
BF16_STATE = 3e-3
"""Adam's steps are as long as the learning rate however small the gradient, so one near 0 whose sign is lost in
rounding moves a parameter by 2e-3 a step."""


def apart(saved: State, expected: State) -> dict[str, float]:
    """Largest difference of each kind of tensor; a checkpoint has step counts too."""
    assert {key for key in saved if key[0] != "step"} == expected.keys()
    assert all(float(saved[key]) == 3 for key in saved if key[0] == "step")
    found: dict[str, float] = {}
    for key, tensor in expected.items():
        found[key[0]] = max(found.get(key[0], 0.0), float((saved[key] - tensor).abs().max()))
    return found


def require_equal(stages: Stages, found: list[Found], name: str, saved: str, expected: WrittenOut) -> None:
    assert mean(found, name, "losses") == pytest.approx(expected.losses[:3], abs=EXACT)
    assert found[0][name]["norms"] == pytest.approx(expected.norms[:3], rel=1e-5)
    assert max(apart(whole(saved_in(stages.folder / saved)), expected.states[3]).values()) <= EXACT


def test_the_clipped_steps_are_clipped(stages: Stages) -> None:
    norms = stages.one["written"].norms[:3]
    assert max(norms) > 2 * 0.5 > min(norms)
    assert stages.one["written"].losses[2] != stages.one["written unclipped"].losses[2]


def test_separately_clipped_steps_are_clipped_from_the_second_on(stages: Stages) -> None:
    separate, without = (stages.one[f"written {how}"] for how in ("separate", "unclipped"))
    assert separate.losses[1] == without.losses[1]
    assert separate.losses[2] != without.losses[2]
    assert not torch.equal(separate.states[3]["exp_avg", "predictor.predictor_proj.weight"],
                           stages.one["written"].states[3]["exp_avg", "predictor.predictor_proj.weight"])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_training_written_out(kind: str, stages: Stages) -> None:
    require_equal(stages, stages.two, kind, kind, stages.one["written"])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_clipped_apart_equal_training_written_out(kind: str, stages: Stages) -> None:
    """And neither accumulation nor recomputed blocks change what is trained."""
    assert UNLIKE["train__accumulation"] != config().train.accumulation
    assert UNLIKE["train__checkpoint_blocks"] != config().train.checkpoint_blocks
    expected = stages.one["written separate"]
    require_equal(stages, stages.two, f"{kind} unlike", f"{kind}-unlike", expected)
    require_equal(stages, [stages.one], f"{kind} unlike", f"{kind}-alone-unlike", expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_equals_training_written_out(kind: str, stages: Stages) -> None:
    require_equal(stages, [stages.one], kind, f"{kind}-alone", stages.one["written"])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_training_written_out(kind: str, world: int, stages: Stages) -> None:
    found, saved = (stages.two, f"{kind}-bf16") if world == 2 else ([stages.one], f"{kind}-alone-bf16")
    expected = stages.one["written bf16"]
    assert mean(found, f"{kind} bf16", "losses") == pytest.approx(expected.losses[:3], abs=BF16_LOSS)
    assert max(apart(whole(saved_in(stages.folder / saved)), expected.states[3]).values()) <= BF16_STATE


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_stages_begin_in_bf16_as_near_each_other_as_in_float32(kind: str, stages: Stages) -> None:
    for found in (stages.two, [stages.one]):
        plain = mean(found, "plain bf16", "losses")
        assert mean(found, f"{kind} bf16", "losses")[:2] == pytest.approx(plain[:2], abs=EXACT)


@pytest.mark.parametrize(("source", "kind"), MOVES)
def test_a_checkpoint_keeps_every_bit_at_another_stage_and_world_size_and_back(
    source: str, kind: str, stages: Stages
) -> None:
    assert stages.two_again
    names = (source, f"{source}-{kind}", f"{source}-{kind}-{source}")
    saved, at_one, at_two = (whole(saved_in(stages.folder / name)) for name in names)
    assert saved.keys() == at_one.keys() == at_two.keys()
    assert all(torch.equal(tensor, at_one[key]) and torch.equal(tensor, at_two[key]) for key, tensor in saved.items())


@pytest.mark.parametrize(("source", "kind"), MOVES)
def test_a_run_goes_on_equally_at_another_stage_and_world_size_and_back(source: str, kind: str, stages: Stages) -> None:
    through = mean(stages.two, source, "after")
    assert through == pytest.approx(stages.one["written"].losses[3:], abs=LATER)
    assert stages.one[f"{source} {kind}"] == pytest.approx(through, abs=EXACT)
    assert mean(stages.two_again, f"{source} {kind}") == through


@pytest.mark.parametrize(("source", "kind"), [("zero1", "zero3"), ("zero3", "zero1")])
def test_the_target_moves_with_the_run(source: str, kind: str, stages: Stages) -> None:
    """DeepSpeed's universal checkpoint restores no parameter that is not trained: a target would start anew."""
    assert stages.two_again
    fresh = dict(build(config(source, seed=7)).encoder.named_parameters())  # what the engine had that loaded it
    moved = whole(saved_in(stages.folder / f"{source}-{kind}-{source}"))
    for name, parameter in fresh.items():
        target, encoder = moved["target", name], moved["master", f"encoder.{name}"]
        torch.testing.assert_close(target, stages.one["written"].states[3]["target", name], rtol=0, atol=EXACT)
        assert not torch.equal(target, parameter.flatten())
        assert not torch.equal(target, encoder)

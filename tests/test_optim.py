"""Which parameters decay, what is clipped together, and which steps are refused."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rayjepa.config import OptimConfig, resolve
from rayjepa.model import build
from rayjepa.train.optim import (
    GroupNorms,
    Guard,
    clip_factors,
    decays,
    joint_norm,
    make_optimizer,
    parameter_groups,
    part_norms,
    set_rates,
)

SEPARATE = OptimConfig(clip_parts="separate")


def _named(position: str = "rope") -> dict[str, Tensor]:
    return dict(build(resolve("tiny", {"model.position": position})).named_parameters())


def _ways(names: Iterator[str]) -> set[str]:
    """Names without numbers, so that all blocks are one."""
    return {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}


def test_matrices_kernels_and_mask_tokens_decay_and_biases_and_norms_do_not() -> None:
    named = _named()
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    matrices = {"encoder.patch_embed.proj", "predictor.predictor_embed", "predictor.predictor_proj"}
    matrices |= {f"{of}.*.{part}" for of in ("encoder.blocks", "predictor.predictor_blocks") for part in block}
    decaying = _ways(name for name, parameter in named.items() if decays(name, parameter))
    assert decaying == {"predictor.mask_tokens.*", *(f"{name}.weight" for name in matrices)}
    others = _ways(name for name, parameter in named.items() if not decays(name, parameter))
    norms = {"encoder.norm", "predictor.predictor_norm"}
    norms |= {f"{of}.*.norm{i}" for of in ("encoder.blocks", "predictor.predictor_blocks") for i in (1, 2)}
    assert others == {f"{name}.bias" for name in matrices | norms} | {f"{name}.weight" for name in norms}


def test_a_position_code_is_not_trained() -> None:
    assert _named("sincos").keys() == _named("rope").keys()


def test_groups_are_parts_by_decay() -> None:
    jepa = build(resolve("tiny", {}))
    for cfg, parts in ((OptimConfig(), ["all"]), (SEPARATE, ["encoder", "predictor"])):
        groups = parameter_groups(jepa, cfg)
        assert sorted((g["part"], g["decays"]) for g in groups) == [(part, claim) for part in parts for claim in (0, 1)]
        assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in jepa.parameters())
    owner = {id(p): name.split(".")[0] for name, p in jepa.named_parameters()}
    assert all(owner[id(p)] == group["part"] for group in parameter_groups(jepa, SEPARATE) for p in group["params"])


def _two_parts() -> nn.ModuleDict:
    """An encoder with a gradient of norm 5, and a predictor with one of norm 12."""
    module = nn.ModuleDict({"encoder": nn.Linear(2, 1), "predictor": nn.Linear(1, 1)})
    for parameter, gradient in zip(module.parameters(), ([[0.0, 4.0]], [3.0], [[12.0]], [0.0]), strict=True):
        parameter.grad = torch.tensor(gradient)
    return module


@pytest.mark.parametrize(
    ("cfg", "clip", "encoder", "predictor"),
    [
        (OptimConfig(), None, 5.0, 12.0),
        (OptimConfig(), 20.0, 5.0, 12.0),
        (OptimConfig(), 6.5, 2.5, 6.0),
        (SEPARATE, 6.5, 5.0, 6.5),
        (SEPARATE, 2.5, 2.5, 2.5),
    ],
)
def test_each_part_is_brought_down_to_the_limit(
    cfg: OptimConfig, clip: float | None, encoder: float, predictor: float
) -> None:
    module = _two_parts()
    optimizer = make_optimizer(module, cfg)
    norms = {part: float(norm) for part, norm in part_norms(module, cfg).items()}
    assert joint_norm(norms) == pytest.approx(13.0)
    optimizer.factors = clip_factors(norms, clip)
    set_rates(optimizer, lr=0.0, weight_decay=0.0)
    optimizer.step()
    after = {part: float(norm) for part, norm in part_norms(module, SEPARATE).items()}
    assert after == pytest.approx({"encoder": encoder, "predictor": predictor}, rel=1e-6)


def test_norms_of_groups_are_added_up_by_parts() -> None:
    norms = GroupNorms(["encoder", "predictor", "encoder"])
    take = norms.kept(lambda gradient: gradient.norm())
    for _ in range(2):
        norms.forget()
        assert [float(take(torch.full((1,), value))) for value in (3.0, 12.0, 4.0)] == [3.0, 12.0, 4.0]
        assert norms.by_part() == {"encoder": 5.0, "predictor": 12.0}
    norms.forget()
    for value in (3.0, 12.0, -1.0):
        norms.kept(torch.tensor)(value)
    assert norms.by_part() == {"encoder": math.inf, "predictor": 12.0}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_refuses_the_step_whatever_the_bound(bad: float) -> None:
    guard = Guard(max_norm=math.inf, device=torch.device("cpu"), world=1)
    guard.agree(norms={"encoder": torch.tensor(1.0), "predictor": torch.tensor(bad)}, stop=False)
    assert guard.verdict(joint_norm(guard.norms)) == "gradient norm is inf"
    guard.agree(norms={"encoder": torch.tensor(1.0), "predictor": torch.tensor(1e30)}, stop=False)
    assert guard.verdict(joint_norm(guard.norms)) is None

import math

import pytest

from rayjepa.config import RunConfig, resolve
from rayjepa.train.schedules import clip_norm, learning_rate, momentum, warnings_for, weight_decay

VJEPA = {
    "train__steps": 90_000,
    "optim__warmup_steps": 12_000,
    "optim__horizon": 1.25,
    "optim__start_lr": 2e-4,
    "optim__lr": 6.25e-4,
    "optim__final_lr": 1e-6,
    "optim__weight_decay": 0.04,
    "optim__final_weight_decay": 0.4,
    "ema__momentum": 0.998,
    "ema__final_momentum": 1.0,
}
"""V-JEPA 1's published schedules (configs/pretrain/vitl16.yaml)."""
COOLDOWN = {
    "train__steps": 12_000,
    "optim__warmup_steps": 0,
    "optim__shape": "linear",
    "optim__lr": 5.25e-4,
    "optim__final_lr": 1e-6,
}
"""V-JEPA 2's published cool-down (configs/train/vitl16/cooldown-256px-64f.yaml), but for its horizon of 1.25."""


def _run(**overrides: object) -> RunConfig:
    base = {"train.steps": 100, "optim.warmup_steps": 20, "optim.start_lr": 0.1, "optim.lr": 1.0, "optim.final_lr": 0.2}
    return resolve(None, base | {key.replace("__", "."): value for key, value in overrides.items()})


def test_v_jepa_1_ends_at_its_published_values() -> None:
    run = _run(**VJEPA)
    assert learning_rate(run, 89_999) == pytest.approx(7.50e-5, abs=0.005e-5)
    assert weight_decay(run, 89_999) == pytest.approx(0.3656, abs=0.00005)
    assert momentum(run, 89_999) == pytest.approx(0.9996, abs=1e-7)


@pytest.mark.parametrize(("horizon", "end"), [(1.25, 1.058e-4), (1.0, 1e-6)])
def test_the_cool_down_ends_where_its_horizon_says(horizon: float, end: float) -> None:
    assert learning_rate(_run(**COOLDOWN, optim__horizon=horizon), 11_999) == pytest.approx(end, rel=1e-3)


def test_an_unfinished_v_jepa_2_file_stops_within_its_warm_up() -> None:
    """The published files for L and H name 10 x 300 steps."""
    run = _run(
        train__steps=3000, optim__warmup_steps=12_000, optim__start_lr=1e-4, optim__lr=5.25e-4, optim__final_lr=5.25e-4
    )
    assert learning_rate(run, 2999) == pytest.approx(2.0625e-4)


def test_schedules_step_before_the_update_and_momentum_after_it() -> None:
    run = _run(ema__momentum=0.9, ema__final_momentum=1.0, optim__final_weight_decay=0.4, optim__weight_decay=0.04)
    assert learning_rate(run, 0) == pytest.approx(0.1 + 0.9 / 20)
    assert [learning_rate(run, step) for step in (19, 99)] == [1.0, 0.2]
    assert weight_decay(run, 0) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi / 100)) / 2)
    assert weight_decay(run, 99) == 0.4
    assert [momentum(run, step) for step in (0, 50)] == [0.9, pytest.approx(0.95)]
    assert momentum(run, 99) == pytest.approx(0.999)


def test_the_learning_rate_is_linear_and_then_of_its_shape() -> None:
    run = _run()
    assert learning_rate(run, 9) == pytest.approx(0.55)
    assert learning_rate(run, 59) == pytest.approx(0.6)
    assert learning_rate(run, 39) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(_run(optim__shape="linear"), 39) == pytest.approx(0.8)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_run_within_a_longer_horizon_is_the_start_of_a_longer_run(shape: str) -> None:
    knobs = {"optim__shape": shape, "optim__final_weight_decay": 0.4, "ema__final_momentum": 1.0}
    cut, whole = _run(**knobs, optim__horizon=1.5), _run(**knobs, train__steps=150)
    for of in (learning_rate, weight_decay, momentum):
        assert [of(cut, step) for step in range(100)] == [of(whole, step) for step in range(100)]


def test_equal_ends_make_the_learning_rate_constant() -> None:
    run = _run(optim__final_lr=1.0)
    assert {learning_rate(run, step) for step in range(19, 100)} == {1.0}


def test_decay_and_momentum_without_a_final_value_are_constant() -> None:
    run = _run(optim__weight_decay=0.3, ema__momentum=0.9, optim__horizon=1.25)
    assert {(weight_decay(run, step), momentum(run, step)) for step in range(100)} == {(0.3, 0.9)}


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 4), (5, 9)])
def test_short_runs_have_a_learning_rate_at_every_step(steps: int, warmup: int) -> None:
    run = _run(train__steps=steps, optim__warmup_steps=warmup)
    assert all(0.1 <= learning_rate(run, step) <= 1.0 for step in range(steps))


def test_clipping_begins_at_its_first_step() -> None:
    run = _run(optim__clip=10.0, optim__clip_from_step=20)
    assert [clip_norm(run, step) for step in (0, 19, 20, 99)] == [None, None, 10.0, 10.0]
    assert clip_norm(_run(), 50) is None


def test_horizons_that_do_not_fit_the_run_are_warned_of() -> None:
    long, slow = warnings_for(_run(optim__warmup_steps=101, ema__momentum=0.99))
    assert "optim.warmup_steps=101" in long
    assert "train.steps=100" in long
    assert "ema.momentum=0.99 averages over 100 steps" in slow


def test_a_horizon_that_cuts_schedules_off_is_warned_of_with_where_they_end() -> None:
    (cut,) = warnings_for(_run(**VJEPA))
    assert "optim.horizon=1.25" in cut
    assert "a learning rate of 7.504e-05 and not optim.final_lr=1e-06" in cut
    assert "a weight decay of 0.3656 and not optim.final_weight_decay=0.4" in cut
    assert "a momentum of 0.9996 and not ema.final_momentum=1.0" in cut


def test_horizons_that_fit_are_not_warned_of() -> None:
    assert warnings_for(_run(ema__momentum=0.95)) == []
    assert warnings_for(_run(ema__momentum=0.95, optim__final_lr=1.0, optim__horizon=1.25)) == []
    assert warnings_for(resolve(None, {"cluster.workers": 1})) == []

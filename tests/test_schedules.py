import math

import pytest

from rayjepa.config import RunConfig, resolve
from rayjepa.train.schedules import learning_rate, momentum, warnings_for, weight_decay


def _run(**overrides: object) -> RunConfig:
    base = {"train.steps": 101, "optim.warmup_steps": 20, "optim.start_lr": 0.1, "optim.lr": 1.0, "optim.final_lr": 0.2}
    return resolve(None, base | {key.replace("__", "."): value for key, value in overrides.items()})


def test_the_learning_rate_meets_its_three_named_values_exactly() -> None:
    run = _run()
    assert [learning_rate(run, step) for step in (0, 20, 100)] == [0.1, 1.0, 0.2]


def test_the_learning_rate_is_linear_and_then_a_cosine() -> None:
    run = _run()
    assert learning_rate(run, 10) == pytest.approx(0.55)
    assert learning_rate(run, 60) == pytest.approx(0.6)
    assert learning_rate(run, 40) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_equal_ends_make_the_learning_rate_constant() -> None:
    run = _run(optim__final_lr=1.0)
    assert {learning_rate(run, step) for step in range(20, 101)} == {1.0}


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 4)])
def test_short_runs_have_a_learning_rate_at_every_step(steps: int, warmup: int) -> None:
    run = _run(train__steps=steps, optim__warmup_steps=warmup)
    assert all(0.1 <= learning_rate(run, step) <= 1.0 for step in range(steps))


def test_momentum_goes_linearly_to_its_final_value() -> None:
    run = _run(ema__momentum=0.9, ema__final_momentum=1.0)
    assert [momentum(run, step) for step in (0, 100)] == [0.9, 1.0]
    assert momentum(run, 50) == pytest.approx(0.95)
    assert momentum(_run(ema__momentum=0.9), 70) == 0.9


def test_weight_decay_is_constant() -> None:
    run = _run(optim__weight_decay=0.3)
    assert {weight_decay(run, step) for step in range(101)} == {0.3}


def test_horizons_that_do_not_fit_the_run_are_warned_of() -> None:
    long, slow = warnings_for(_run(optim__warmup_steps=101, ema__momentum=0.99))
    assert "optim.warmup_steps=101" in long
    assert "train.steps=101" in long
    assert "ema.momentum=0.99 averages over 100 steps" in slow


def test_horizons_that_fit_are_not_warned_of() -> None:
    assert warnings_for(_run(ema__momentum=0.95)) == []
    assert warnings_for(resolve(None, {"cluster.workers": 1})) == []

"""Shares of streams in steps: whole, without state, and right over time."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjepa.data.quotas import Quotas

WEIGHTS = st.lists(st.one_of(st.integers(1, 9).map(float), st.floats(0.01, 9.0)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(weights=WEIGHTS, units=st.integers(1, 12), quantum=st.integers(1, 4), steps=st.integers(1, 60))
def test_quotas_fill_each_step_by_multiples_and_realise_the_weights_over_time(
    weights: list[float], units: int, quantum: int, steps: int
) -> None:
    quotas = Quotas.of(weights, clips=units * quantum, quantum=quantum)
    each = [quotas.step(step) for step in range(steps)]
    assert all(sum(step) == units * quantum and min(step) >= 0 for step in each)
    assert all(quota % quantum == 0 for step in each for quota in step)
    for number, weight in enumerate(weights):
        taken = sum(step[number] for step in each)
        assert taken == quotas.before(steps)[number]
        share = Fraction(str(weight)) / sum(Fraction(str(w)) for w in weights)
        assert abs(taken / quantum - float(share * units * steps)) <= (number + 1) / 2 + 1e-6
    assert [quotas.step(step) for step in reversed(range(steps))] == each[::-1]  # no state


@pytest.mark.parametrize(
    ("weights", "units", "expected"),
    [
        ([3.0, 1.0], 4, [(3, 1)] * 4),
        ([1.0, 1.0], 1, [(1, 0), (0, 1)] * 2),
        ([0.7, 0.2, 0.1], 10, [(7, 2, 1)] * 3),
        ([2.0, 1.0], 1, [(1, 0), (0, 1), (1, 0)] * 2),
    ],
)
def test_whole_shares_are_the_quotas_of_every_step_and_others_take_turns(
    weights: list[float], units: int, expected: list[tuple[int, ...]]
) -> None:
    quotas = Quotas.of(weights, clips=units, quantum=1)
    assert [quotas.step(step) for step in range(len(expected))] == expected


@settings(deadline=None, max_examples=50)
@given(weights=WEIGHTS, units=st.integers(1, 8), quantum=st.integers(1, 3))
def test_the_places_of_a_streams_samples_count_up_without_a_gap(weights: list[float], units: int, quantum: int) -> None:
    quotas = Quotas.of(weights, clips=units * quantum, quantum=quantum)
    seen = Counter[int]()
    for index in range(20 * units * quantum):
        stream, number = quotas.place(index)
        assert number == seen[stream]
        seen[stream] += 1

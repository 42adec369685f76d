"""Weighted sources: exact shares over time, every video of a source once a pass, nothing but the index decides."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tape import manifest, run_of

from rayjepa.cli.derived import derived
from rayjepa.config import ConfigError, RunConfig
from rayjepa.data.columns import SCHEMA
from rayjepa.data.manifest import Manifest
from rayjepa.data.mixture import DECK, Mixture
from rayjepa.data.tape import Tape

NAMES = ("a", "b", "c", "d")


def of_sources(videos: Mapping[str | None, int], *, holdout: Sequence[int] = ()) -> Manifest:
    """So many videos of each source, one source after the other."""
    table = manifest([5.0] * sum(videos.values()), holdout=holdout).table
    names = pa.array([name for name, count in videos.items() for _ in range(count)], pa.string())
    return Manifest(table.set_column(SCHEMA.get_field_index("source"), SCHEMA.field("source"), names))


def weighed(weights: Mapping[str, float], **knobs: object) -> RunConfig:
    return run_of(data__sources=[{"name": name, "weight": weight} for name, weight in weights.items()], **knobs)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.5, 40.0]), min_size=1, max_size=5),
    decks=st.integers(1, 12),
    key=st.binary(min_size=1, max_size=4),
)
def test_each_sources_numbers_come_without_a_gap_and_its_share_is_exact(
    weights: list[float], decks: int, key: bytes
) -> None:
    mixture = Mixture(weights, key)
    places = [mixture.place(number) for number in range(decks * DECK)]
    for source, weight in enumerate(weights):
        numbers = [place.number for place in places if place.stream == source]
        assert numbers == list(range(len(numbers)))
        assert abs(len(numbers) - len(places) * weight / sum(weights)) <= (source + 1) / 2 + 1e-9


def test_no_place_of_a_micro_batch_always_meets_the_same_source() -> None:
    mixture = Mixture([1.0, 1.0], b"k")
    for place in range(4):
        assert {mixture.place(4 * batch + place).stream for batch in range(20)} == {0, 1}


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=3), weight=st.integers(1, 5), k=st.integers(1, 3))
def test_every_video_of_a_source_comes_once_before_any_comes_again(counts: list[int], weight: int, k: int) -> None:
    names = NAMES[: len(counts)]
    videos = of_sources(dict(zip(names, counts, strict=True)))
    tape = Tape(weighed(dict.fromkeys(names, 1) | {"a": weight}, data__clips_per_video=k, train__steps=150), videos)
    source = videos.column("source").to_pylist()
    drawn = [tape.spec(k * number).video for number in range(2 * DECK)]
    for name, count in zip(names, counts, strict=True):
        rows = [row for row in drawn if source[row] == name]
        passes = [rows[first : first + count] for first in range(0, len(rows), count)]
        assert all(len(set(turn)) == len(turn) for turn in passes)
        assert all(len(turn) == count for turn in passes[:-1])


def test_a_source_of_one_video_has_its_share_and_the_others_take_its_place_when_it_is_bad() -> None:
    tape = Tape(weighed({"a": 1, "b": 1}), of_sources({"a": 1, "b": 5}))
    specs = [tape.spec(i) for i in range(6 * DECK)]
    assert sum(spec.video == 0 for spec in specs) == 3 * DECK
    first = next(spec.index for spec in specs if spec.video == 0)
    walk = [tape.spec(first, attempt).video for attempt in range(1, 6)]
    assert sorted(walk) == [1, 2, 3, 4, 5]


def test_substitutes_are_of_the_same_source_until_all_of_it_have_been_tried() -> None:
    tape = Tape(weighed({"a": 3, "b": 1}), of_sources({"a": 4, "b": 5}))
    for i in range(60):
        walk = [tape.spec(i, attempt).video for attempt in range(9)]
        own = range(4) if walk[0] < 4 else range(4, 9)
        assert sorted(walk[: len(own)]) == list(own)
        assert sorted(walk) == list(range(9))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_sources_of_a_sample_do_not_depend_on_the_world(world: int) -> None:
    videos, weights = of_sources({"a": 7, "b": 3}), {"a": 0.9, "b": 0.1}
    one = Tape(weighed(weights, cluster__workers=1, train__accumulation=4), videos)
    other = Tape(weighed(weights, cluster__workers=world, cluster__decoders=3), videos)
    assert [other.spec(i) for i in reversed(range(200))] == [one.spec(i) for i in reversed(range(200))]


def test_a_source_of_weight_0_is_neither_drawn_nor_examined() -> None:
    tape = Tape(weighed({"a": 1, "b": 0}), of_sources({"a": 6, "b": 6}, holdout=[4, 5, 10, 11]))
    assert {tape.spec(i).video for i in range(400)} == {0, 1, 2, 3}
    assert {spec.video for spec in tape.held_out(9)} == {4, 5}
    assert tape.videos == 4


def test_the_share_of_each_source_is_said_at_the_start() -> None:
    lines = derived(weighed({"a": 3, "b": 1}), of_sources({"a": 50, "b": 10}))
    assert "source a: 0.75 of samples, 50 videos, 6.0 passes" in lines
    assert "source b: 0.25 of samples, 10 videos, 10.0 passes" in lines


@pytest.mark.parametrize(
    ("weights", "videos", "message"),
    [
        ({"a": 1}, {"a": 3, "b": 2}, r"no weight to b \(2 training videos.*add \{name: b, weight: W\}.*0 leaves it"),
        ({"a": 1, "bee": 1}, {"a": 3, "be": 2, "x": 1}, r"gives no weight to be, x \(3 training"),
        ({"a": 1, "bee": 1, "be": 0}, {"a": 3, "be": 2}, r"data.sources\[bee\] names a source .* \(nearest: be\)"),
        ({"a": 1}, {None: 4}, r"4 training videos have no source.*NAME=SOURCE"),
        ({"a": 1, "b": 1}, {"a": 3, "b": 2}, r"all 2 usable videos of source b are held out; lower data.holdout"),
    ],
)
def test_sources_that_do_not_fit_are_refused_in_one_sentence(
    weights: dict[str, float], videos: dict[str | None, int], message: str
) -> None:
    held_out = [3, 4] if list(videos) == ["a", "b"] and "b" in weights else []
    with pytest.raises(ValueError, match=message):
        Tape(weighed(weights), of_sources(videos, holdout=held_out))


def test_weights_that_sum_to_zero_and_names_that_come_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="the weights of a, b are all 0; one must be above 0"):
        weighed({"a": 0, "b": 0})
    with pytest.raises(ConfigError, match=r"data\.sources have the names a, a; each needs its own"):
        run_of(data__sources=[{"name": "a", "weight": 1}, {"name": "a", "weight": 2}])

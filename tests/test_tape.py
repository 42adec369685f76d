"""The permutation, the tape and the division of its steps."""

import hashlib
import math
import pickle
from collections import Counter
from collections.abc import Collection
from dataclasses import fields
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjepa.config import RunConfig, resolve
from rayjepa.data.clip import ClipSpec
from rayjepa.data.columns import SCHEMA
from rayjepa.data.manifest import Manifest
from rayjepa.data.permutation import permute
from rayjepa.data.tape import Tape, micro_batch_ids

# ---------------------------------------------------------------- permutation


@pytest.mark.parametrize("n", [*range(1, 40), 97, 256, 997, 1000, 1009])
def test_permute_takes_each_place_once(n: int) -> None:
    assert sorted(permute(i, n, b"key") for i in range(n)) == list(range(n))


@given(n=st.integers(1, 1 << 63), seed=st.integers(0, 1 << 63), data=st.data())
def test_permute_stays_in_range_and_keeps_neighbours_apart(n: int, seed: int, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, n - 1))
    places = {permute(j, n, b"%d" % seed) for j in {i, (i + 1) % n, 0, n - 1}}
    assert len(places) == len({i, (i + 1) % n, 0, n - 1})
    assert all(0 <= p < n for p in places)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_small_permutation_is_equally_likely_over_keys(n: int) -> None:
    keys, orders = 2000, math.factorial(n)
    seen = Counter(tuple(permute(i, n, b"%d" % k) for i in range(n)) for k in range(keys))
    expected = keys / orders
    chi2 = sum((count - expected) ** 2 / expected for count in seen.values()) + expected * (orders - len(seen))
    assert chi2 < orders - 1 + 5 * math.sqrt(2 * (orders - 1))  # mean and five standard deviations


def test_permute_looks_uniform_and_differs_by_key_and_size() -> None:
    n = 4000
    a, b = (np.array([permute(i, n, key) for i in range(n)]) for key in (b"a", b"b"))
    assert np.count_nonzero(a == b) < 10  # one agreement is expected
    counts = np.histogram2d(np.arange(n), a, bins=10)[0]
    chi2 = float(((counts - n / 100) ** 2 / (n / 100)).sum())
    assert 81 - 5 * math.sqrt(162) < chi2 < 81 + 5 * math.sqrt(162)  # 9 x 9 degrees of freedom
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 5 / math.sqrt(n)
    assert [permute(i, n, b"a") for i in range(20)] != [permute(i, n + 1, b"a") for i in range(20)]


@pytest.mark.parametrize(("i", "n"), [(-1, 3), (3, 3), (0, 0), (0, (1 << 63) + 1)])
def test_permute_refuses_what_is_out_of_range(i: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"i={i} is not in range"):
        permute(i, n, b"key")


# ---------------------------------------------------------------- tape


def manifest(
    durations_s: list[float], *, holdout: Collection[int] = (), bad: Collection[int] = (), linear: Collection[int] = ()
) -> Manifest:
    rows = [
        {
            "uri": f"/videos/{i:05d}.mp4",
            "bytes": 1000,
            "fps": 24.0,
            "duration_s": duration,
            "frames": round(24 * duration),
            "seek": "linear" if i in linear else "planned",
            "split": "holdout" if i in holdout else "train",
            "status": "bad" if i in bad else "ok",
        }
        for i, duration in enumerate(durations_s)
    ]
    return Manifest(pa.Table.from_pylist(rows, schema=SCHEMA))


def run_of(**overrides: object) -> RunConfig:
    return resolve("tiny", {"train.steps": 100, **{k.replace("__", "."): v for k, v in overrides.items()}})


TEN = manifest([5.0 + i for i in range(10)])


def test_every_video_of_a_pass_comes_once_in_an_order_of_its_own() -> None:
    tape = Tape(run_of(), TEN)
    passes = [[tape.spec(p * 10 + i).video for i in range(10)] for p in range(40)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len({tuple(p) for p in passes}) == 40


def test_held_out_and_bad_videos_are_never_drawn() -> None:
    tape = Tape(run_of(), manifest([5.0] * 10, holdout={1, 4}, bad={0, 7}))
    assert tape.videos == 6
    drawn = {tape.spec(i, attempt).video for i in range(400) for attempt in (0, 1, 5)}
    assert drawn == {2, 3, 5, 6, 8, 9}


def test_a_sample_depends_on_seed_manifest_index_and_attempt_alone() -> None:
    a = Tape(run_of(), TEN)
    other_world = Tape(run_of(cluster__workers=4, train__accumulation=1, cluster__decoders=7, train__steps=200), TEN)
    for i in (399, 0, 17):
        assert a.spec(i) == other_world.spec(i) == pickle.loads(pickle.dumps(a)).spec(i)
        assert a.spec(i) != Tape(run_of(seed=1), TEN).spec(i)
    longer = manifest([5.0 + i for i in range(9)] + [14.5])
    assert [a.spec(i).view_seed for i in range(9)] != [Tape(run_of(), longer).spec(i).view_seed for i in range(9)]


def test_the_tape_of_the_tiny_preset_is_what_it_was() -> None:
    spec = Tape(resolve("tiny", {}), TEN).spec(5)
    assert (spec.video, round(spec.start_s, 6), spec.flip) == (9, 9.370881, False)
    assert (spec.window.seed, spec.mask_seed, spec.view_seed) == (
        4388623939525127983,
        6464548261550692758,
        5245051837089917168,
    )


def test_the_tape_of_videos_without_weights_is_bit_for_bit_what_it_was() -> None:
    videos = manifest([0.2 + i * 0.7 for i in range(137)], holdout={3, 9, 50, 99, 120}, bad={0, 7, 8}, linear={20, 21})
    tape = Tape(run_of(), videos)
    drawn = [tape.spec(i, attempt) for i in range(400) for attempt in (0, 1, 7)]
    kept = [field.name for field in fields(ClipSpec) if field.name != "place"]  # it came later, and changes no sample
    assert [
        hashlib.blake2b(
            "".join(repr([(name, getattr(spec, name)) for name in kept]) for spec in specs).encode(), digest_size=8
        ).hexdigest()
        for specs in (drawn, tape.held_out(3), tape.held_out(64))
    ] == ["5b2c513d55c96aa3", "f4eb1c4253bf4ae1", "dbd14c7c5d2f83fa"]


def test_clips_lie_within_their_videos_and_fill_them() -> None:
    run = run_of(train__steps=1000)
    tape = Tape(run, TEN)
    specs = [tape.spec(i) for i in range(2000)]
    span = (run.data.frames - 1) / run.data.fps
    share = np.array([s.start_s / (TEN.duration_s[s.video] - span) for s in specs])
    assert share.min() >= 0
    assert share.max() <= 1
    counts = np.histogram(share, bins=20, range=(0, 1))[0]
    assert float(((counts - 100.0) ** 2 / 100).sum()) < 19 + 5 * math.sqrt(38)
    flips = sum(s.flip for s in specs)
    assert abs(flips - 1000) < 5 * math.sqrt(500)
    seeds = [seed for s in specs for seed in (s.mask_seed, s.view_seed, s.window.seed)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flips_obey_their_probability_at_both_ends(flip: float, expected: set[bool]) -> None:
    tape = Tape(run_of(data__flip=flip), TEN)
    assert {tape.spec(i).flip for i in range(200)} == expected


def test_substitutes_are_other_videos_until_all_have_been_tried() -> None:
    tape = Tape(run_of(), TEN)
    firsts: set[int] = set()
    for i in range(50):
        videos = [tape.spec(i, attempt).video for attempt in range(10)]
        assert sorted(videos) == list(range(10))
        assert tape.spec(i, 10).video in videos  # the set is spent
        firsts.add(videos[1])
    assert firsts == set(range(10))


def test_a_substitute_keeps_mask_and_view_and_draws_the_rest_anew() -> None:
    tape = Tape(run_of(), TEN)
    first, second = tape.spec(3), tape.spec(3, 1)
    assert (second.index, second.attempt) == (3, 1)
    assert (first.mask_seed, first.view_seed) == (second.mask_seed, second.view_seed)
    assert first.window.seed != second.window.seed
    assert first.start_s != second.start_s


def test_one_video_is_its_own_substitute() -> None:
    tape = Tape(run_of(), manifest([5.0]))
    assert [tape.spec(7, attempt).video for attempt in range(3)] == [0, 0, 0]


def test_a_short_video_starts_at_its_beginning_or_is_skipped() -> None:
    videos = manifest([0.2, 5.0, 0.3, 5.0])
    repeating = Tape(run_of(), videos)
    assert {s.start_s for i in range(40) if (s := repeating.spec(i)).video in (0, 2)} == {0.0}
    skipping = Tape(run_of(data__short_videos="skip"), videos)
    assert {skipping.spec(i).video for i in range(40)} == {1, 3}


@pytest.mark.parametrize(("index", "attempt"), [(-1, 0), (400, 0), (0, -1)])
def test_a_sample_off_the_tape_is_refused(index: int, attempt: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index}, attempt {attempt} is not on this tape of 400 samples"):
        Tape(run_of(), TEN).spec(index, attempt)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (manifest([5.0, 6.0], bad={0, 1}), "none of the manifest's 2 videos is usable; index a source"),
        (manifest([5.0, 6.0], holdout={0, 1}), "all 2 usable videos are held out; index them again with data.holdout"),
        (
            manifest([0.1, 0.2]),
            r"all 2 training videos last less than .* 0.38 s \(longest: 0.20 s\) .* set it to repeat",
        ),
    ],
)
def test_a_tape_without_videos_is_refused_with_the_remedy(videos: Manifest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tape(run_of(data__short_videos="skip"), videos)


# ---------------------------------------------------------------- several clips of one video


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 5), videos=st.integers(1, 9), seed=st.integers(0, 99))
def test_each_video_of_a_pass_gives_its_clips_in_a_row_and_comes_once(k: int, videos: int, seed: int) -> None:
    tape = Tape(run_of(data__clips_per_video=k, seed=seed), manifest([5.0] * videos))
    for turn in range(3):
        drawn = [tape.spec(turn * videos * k + i) for i in range(videos * k)]
        rows = [[spec.video for spec in drawn[first : first + k]] for first in range(0, len(drawn), k)]
        assert all(len(set(row)) == 1 for row in rows)
        assert sorted(row[0] for row in rows) == list(range(videos))
        places = {(spec.start_s, spec.window.seed, spec.mask_seed, spec.view_seed) for spec in drawn}
        assert len(places) == len(drawn)


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 5), world=st.sampled_from([1, 2, 4]), start=st.integers(0, 99), attempt=st.integers(0, 3))
def test_with_several_clips_a_video_the_position_is_still_one_integer(
    k: int, world: int, start: int, attempt: int
) -> None:
    sizes = {"data__clips_per_video": k, "train__clips": 4}
    one = Tape(run_of(cluster__workers=1, **sizes), TEN)
    other = pickle.loads(pickle.dumps(Tape(run_of(cluster__workers=world, cluster__decoders=3, **sizes), TEN)))
    ids = [i for rank in range(world) for i in micro_batch_ids(other.run, world=world, rank=rank, step=start, micro=0)]
    assert ids == list(range(4 * start, 4 * start + 4))
    assert [other.spec(i, attempt) for i in reversed(ids)] == [one.spec(i, attempt) for i in reversed(ids)]


def test_each_clip_of_a_bad_video_has_substitutes_of_its_own_among_all_others() -> None:
    tape = Tape(run_of(data__clips_per_video=3), TEN)
    walks = [[tape.spec(i, attempt).video for attempt in range(10)] for i in range(3)]
    assert all(sorted(walk) == list(range(10)) for walk in walks)
    assert len({walk[0] for walk in walks}) == 1
    assert len({tuple(walk) for walk in walks}) > 1


def test_a_spec_says_how_its_file_is_read() -> None:
    tape = Tape(run_of(), manifest([5.0] * 4, linear={1, 2}))
    assert {(s.video, s.seek) for s in map(tape.spec, range(4))} == {
        (0, "planned"), (1, "linear"), (2, "linear"), (3, "planned"),
    }  # fmt: skip
    assert {(s.video, s.seek) for s in tape.held_out(4)} == {(s.video, s.seek) for s in map(tape.spec, range(4))}


# ---------------------------------------------------------------- held-out clips


def test_held_out_clips_are_first_the_middle_of_each_video() -> None:
    videos = manifest([2.0 + i for i in range(30)], holdout=set(range(20, 30)))
    tape = Tape(run_of(), videos)
    assert not tape.held_out_is_train
    specs = tape.held_out(10)
    assert sorted(s.video for s in specs) == list(range(20, 30))
    assert [s.video for s in specs] != list(range(20, 30))
    for s in specs:
        assert s.start_s == pytest.approx((videos.duration_s[s.video] - 3 / 8) / 2)
        assert (s.window.seed, s.flip) == (-1, False)
    assert [s.index for s in specs] == list(range(10))
    assert tape.held_out(4) == specs[:4]
    assert tape.held_out(0) == ()


def test_held_out_clips_do_not_depend_on_the_seed_of_the_run() -> None:
    assert Tape(run_of(), TEN).held_out(20) == Tape(run_of(seed=9), TEN).held_out(20)


def test_without_a_holdout_training_videos_are_examined() -> None:
    tape = Tape(run_of(), TEN)
    assert tape.held_out_is_train
    assert len(tape.held_out(4)) == 4


@settings(max_examples=25, deadline=None)
@given(durations=st.lists(st.floats(0.05, 4.0), min_size=1, max_size=5), count=st.integers(1, 60))
def test_held_out_clips_fill_the_videos_and_share_no_frame(durations: list[float], count: int) -> None:
    run = run_of()  # 4 frames at 8 fps
    specs = Tape(run, manifest(durations)).held_out(count)
    room = sum(max(1, math.floor(d / 0.5)) for d in durations)
    assert len(specs) == min(count, room)
    starts: dict[int, list[float]] = {}
    for s in specs:
        assert 0 <= s.start_s <= max(0.0, durations[s.video] - 3 / 8)
        starts.setdefault(s.video, []).append(s.start_s)
    assert len(starts) == min(count, len(durations))
    for at in starts.values():
        assert all(abs(a - b) > 0.5 - 1e-9 for a, b in combinations(at, 2))


# ---------------------------------------------------------------- steps, ranks and micro-batches


@settings(max_examples=20, deadline=None)
@given(
    world=st.sampled_from([1, 2, 4, 8]),
    accumulation=st.sampled_from([1, 2, 3, 4]),
    micro=st.integers(1, 3),
    start=st.integers(0, 19),
)
def test_the_blocks_of_a_step_are_its_samples_in_order(world: int, accumulation: int, micro: int, start: int) -> None:
    clips = world * accumulation * micro
    run = run_of(cluster__workers=world, train__accumulation=accumulation, train__clips=clips, train__steps=20)
    taken: list[int] = []
    for step in range(start, 20):
        for a in range(accumulation):
            for rank in range(world):
                block = micro_batch_ids(run, world=world, rank=rank, step=step, micro=a)
                assert len(block) == run.micro_batch == micro
                taken += block
    assert taken == list(range(start * clips, 20 * clips))


@pytest.mark.parametrize(
    ("rank", "step", "micro", "message"),
    [(2, 0, 0, r"rank=2 is not in \[0, 2\)"), (0, 0, 1, "micro=1"), (-1, 0, 0, "rank=-1")],
)
def test_a_block_outside_the_run_is_refused(rank: int, step: int, micro: int, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        micro_batch_ids(run_of(), world=2, rank=rank, step=step, micro=micro)

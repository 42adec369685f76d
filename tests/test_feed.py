"""`bench feed`: arithmetic, words and picture, from arrivals that are made up; and the verb, once, on Ray."""

import json
import random
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjepa.bench import feed, feed_chart, feed_runs, feed_text
from rayjepa.bench.feed import Arrival, Ceiling, Measured, Point, Rate, Round, SlowRound, Waits
from rayjepa.cli import main
from rayjepa.cli.videos import videos_of
from rayjepa.config import resolve
from rayjepa.data import manifest
from rayjepa.data.blocks import Timing
from rayjepa.data.manifest import Manifest

RUN = resolve("demo", {})


def arrivals(
    *, clips_per_s: float, blocks: int, ready: int = 0, block: int = 3, size: int = 8, taker_per_s: float = 1e9
) -> list[Arrival]:
    """Of a pipeline that has `ready` blocks at time 0, makes more at a rate, and hands over no faster than another."""
    made, now = [-1.0 - k for k in range(ready)][::-1], 0.0
    made += [(k + 1) * block * size / clips_per_s for k in range(blocks - ready)]
    taken: list[Arrival] = []
    for made_s in made:
        for _ in range(block):
            before, now = now, max(now + size / taker_per_s, made_s)
            taken.append(Arrival(clips=size, made_s=made_s, arrived_s=now, waited_s=now - before))
    return taken


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(1, 16), st.floats(10, 1e4))
def test_what_was_ready_before_counting_began_raises_no_rate(ready: int, block: int, clips_per_s: float) -> None:
    taken = arrivals(clips_per_s=clips_per_s, blocks=60, ready=ready, block=block)
    assert feed.rate([taken]).clips_per_s == pytest.approx(clips_per_s, rel=1e-6)


def test_a_queue_that_empties_while_clips_are_counted_raises_no_rate() -> None:
    """A taker that was slow at first catches up: clips arrive faster than they are decoded."""
    taken = arrivals(clips_per_s=100.0, blocks=40, block=1, size=10)
    late = [replace(a, arrived_s=max(a.arrived_s, 3.0)) for a in taken]
    assert feed.rate([late]).arrived == pytest.approx(100.0, rel=0.01)  # of blocks made after the first arrival
    held = [replace(a, arrived_s=a.arrived_s + max(0.0, 0.5 - 0.02 * k)) for k, a in enumerate(taken)]
    found = feed.rate([held])
    assert found.arrived > 1.05 * 100.0
    assert found.clips_per_s == pytest.approx(100.0, rel=1e-6)


def test_rates_of_takers_add_up() -> None:
    one = arrivals(clips_per_s=50.0, blocks=30)
    assert feed.rate([one, one, one, one]).arrived == pytest.approx(200.0)


def test_too_few_blocks_are_no_rate() -> None:
    with pytest.raises(RuntimeError, match=r"only 1 block.*raise --seconds"):
        feed.rate([arrivals(clips_per_s=50.0, blocks=9, ready=8)])


def test_waits_are_a_share_of_waiting_and_sleeping() -> None:
    taken = [
        Arrival(clips=8, made_s=0.0, arrived_s=0.0, waited_s=waited, slept_s=0.1) for waited in (0.0, 0.0, 0.05, 0.05)
    ]
    found = feed.waits([taken, taken], demand=80.0)
    assert found.share == pytest.approx(0.1 / 0.5)
    assert found.longest_s == 0.05


def test_feeding_says_what_a_runs_metrics_would_say() -> None:
    timing = Timing(decode_s=0.08, idle_s=0.02, cpu_s=0.06, read_s=0.01, read_bytes=4e6, actor=1.0)
    taken = [
        Arrival(
            clips=8, made_s=float(k // 2), arrived_s=float(k), waited_s=0.02, slept_s=0.08, transfer_s=0.001,
            timing=timing._replace(actor=float(k % 2)),
        )
        for k in range(10)
    ]  # fmt: skip
    fed = feed.feeding([taken, taken], is_endless=False)
    assert (fed.steps, fed.step_ms, fed.wait_ms) == (20, pytest.approx(100), pytest.approx(20))
    assert fed.clips_per_s == pytest.approx(160)
    assert (fed.decode_ms, fed.decode_cpu_ms, fed.read_ms, fed.read_mb) == pytest.approx((10, 7.5, 1.25, 0.5))
    assert (fed.busy_share, fed.transfer_ms) == pytest.approx((0.8, 1))
    assert fed.blocks_per_s == pytest.approx(10)


def measured(rounds: int = 5) -> Measured:
    """Made up, with all parts."""
    draw = random.Random(0)

    def rate(value: float) -> Rate:
        return Rate(arrived=value * draw.uniform(1.0, 1.02), made=value, seconds=3.0)

    taken = [replace(a, timing=Timing(0.095, 0.005, 0.09, 0.0, 0.0, 1.0)) for a in arrivals(clips_per_s=80, blocks=40)]
    fed = feed.feeding([taken], is_endless=True)
    waits = {f: Waits(demand=80 / f, share=0.004 if f > 1.1 else 0.03, longest_s=0.1) for f in feed.DEMANDS}
    return Measured(
        decoders=1, workers=1, micro_batch=8, block=3, prefetch=64, clip_bytes=98_304, cores=2,
        rounds=[
            Round(
                alone=rate(draw.uniform(78, 82)), stream=rate(draw.uniform(76, 81)), loader=rate(draw.uniform(74, 80)),
                first_s=4.0 + draw.random(), waits=waits, fed=fed,
            )
            for _ in range(rounds)
        ],
        slow=[SlowRound(capacity=70.0, as_set=Waits(demand=58.0, share=0.0, longest_s=0.0), off=waits[1.05])] * 3,
        growth={
            "decode actors": [
                Point(at=1, stream=80.0, alone=82.0, first_s=4.0),
                Point(at=2, stream=120.0, alone=150.0, first_s=5.0, is_crowded=True),
            ],
            "clip px": [Point(at=px, stream=6000.0 / px, alone=6100.0 / px, first_s=4.0) for px in feed_runs.SIZES_PX],
            "manifest rows": [Point(at=rows, stream=80.0, alone=None, first_s=4.0) for rows in feed_runs.ROWS],
            "trainers": [Point(at=n, stream=80.0, alone=None, first_s=4.0 + n) for n in feed_runs.TRAINERS],
        },
        ceiling=[
            Ceiling(trainers=n, block=m, blocks_per_s=100.0 - m, clips_per_s=(100.0 - m) * m * 8)
            for n in feed_runs.CEILING_TRAINERS
            for m in feed_runs.CEILING_BLOCKS
        ],
        loads={"ratios": (0.2, 1.4), "slow": (1.4, 1.6), "growth": (1.6, 2.2), "ceiling": (2.2, 2.5)},
    )  # fmt: skip


def test_the_words_hold_every_part_and_fit_the_width() -> None:
    said = feed_text.text(measured(), RUN)
    assert max(map(len, said.splitlines())) <= feed_text.WIDE
    for word in ("RATES", "WAITS", "SLOW CLIPS", "GROWTH", "CEILING", "1,024 GPUs", "Load average", "WHAT BOUNDS"):
        assert word in said
    assert "stream / decoders alone" in said
    assert "target 0.90 reached" in said
    assert "target < 1 % reached" in said
    assert "decode: steps wait 100 % of their time" in said
    assert "cluster.decoders (now 2)" in said


def test_the_arithmetic_for_many_gpus_is_of_the_slowest_wide_block() -> None:
    said = " ".join(feed_text.text(measured(), RUN).split())
    # 1,024 x 109.375 clips/s = 112,000 = 14,000 micro-batches of 8; at 84 blocks/s that is 167 in a block.
    assert "112,000 clips/s, which are 14,000 micro-batches of 8 clips" in said
    assert "at least 84 blocks/s to 16 trainers, so a block must hold 167 micro-batches" in said


def test_a_part_that_was_not_asked_for_is_not_in_the_words_nor_in_the_picture() -> None:
    some = replace(measured(), slow=[], growth={}, ceiling=[], loads={})
    said, drawn = feed_text.text(some, RUN), feed_chart.svg(some)
    assert not {"SLOW", "GROWTH", "CEILING"} & set(said.replace(":", " ").split())
    assert "Ceiling" not in drawn
    assert "ahead" not in drawn
    none = replace(measured(), rounds=[])
    assert "RATES" not in feed_text.text(none, RUN)
    ET.fromstring(feed_chart.svg(none))


def test_the_picture_has_a_mark_for_every_figure() -> None:
    drawn = measured()
    root = ET.fromstring(feed_chart.svg(drawn))
    tips = [tip.text or "" for tip in root.iter("{http://www.w3.org/2000/svg}title")]
    rows, points = 2 + 3 + 2, sum(map(len, drawn.growth.values())) + 2 + 3 + 2 * len(drawn.ceiling)
    assert len(tips) == rows + points
    high = float(root.get("height", "0"))
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.get("y", "-1")) <= high


def test_medians_and_all_readings_are_in_the_plain_data() -> None:
    found = json.loads(json.dumps(feed.figures(measured())))
    assert 0.9 < found["medians"]["stream_over_alone"]["median"] < 1.05
    assert set(found["medians"]) >= {"wait_share_at_1.2", "slow_wait_share", "slow_wait_share_prefetch_off"}
    assert len(found["rounds"]) == 5


def test_a_core_is_left_to_the_trainer_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    run = feed_runs.measured_run(RUN, {})
    assert (run.cluster.decoders, run.ranks, run.micro_batch) == (7, 1, RUN.micro_batch)
    asked = {"cluster.decoders": 3, "cluster.workers": 2}
    run = feed_runs.measured_run(resolve("demo", asked), asked)
    assert (run.cluster.decoders, run.ranks, run.micro_batch) == (3, 2, RUN.micro_batch)
    assert feed_runs.with_trainers(run, 8).micro_batch == RUN.micro_batch
    assert feed_runs.roomy(run, ["growth"]).cluster.decoders == 8
    assert feed_runs.roomy(run, ["slow"]).cluster.decoders == 3


def test_a_mistake_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--rounds", "0"], ["--plot", "a.png"], ["cluster.workers=0"]):
        assert main(["bench", "feed", "--preset", "tiny", *words]) == 2
    said = capsys.readouterr().err
    assert "ends in .svg" in said
    assert "bench feed needs at least 1" in said


@pytest.mark.slow
def test_one_clip_in_so_many_is_slow_and_every_block_is_stamped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayjepa.on_ray import bench_decoders

    monkeypatch.setattr(bench_decoders, "SLOW_EVERY", 8)
    monkeypatch.setattr(bench_decoders, "SLOW_S", 0.4)
    run = feed_runs.measured_run(resolve("tiny", {"data.cache": str(tmp_path), "cluster.block": 1}), {})
    videos = videos_of(run)
    assert isinstance(videos, Manifest)
    manifest.write(videos, tmp_path / "m.parquet")
    actor = bench_decoders.SlowActor(run, str(tmp_path / "m.parquet"), 0)
    spent: list[float] = []
    for number in range(4):  # of samples 0 and 1, 2 and 3, 4 (the slow one) and 5, 6 and 7
        began = time.time()
        block = actor({"id": [number]})
        assert block["index"].tolist() == [2 * number, 2 * number + 1]
        assert all(began < made_s <= time.time() for made_s in block["made_s"])
        spent.append(Timing(*block["timing"].sum(axis=0)).decode_s)
    actor.decoders.__exit__(None, None, None)
    assert spent[2] > 0.4 > min(spent[1], spent[3])
    null = bench_decoders.NullActor(run, "", 0)({"id": [3]})
    assert null["index"].tolist() == [6, 7]


@pytest.mark.ray
@pytest.mark.slow
def test_the_verb_measures_on_a_cluster_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["--preset", "tiny", f"data.cache={tmp_path}", "--rounds", "1", "--seconds", "0.5", "--only", "ratios"]
    assert main(["bench", "feed", *words, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")]) == 0
    said = capsys.readouterr().out
    assert "WHAT BOUNDS" in said
    found = json.loads((tmp_path / "a.json").read_text())
    [only] = found["rounds"]
    for entrant in ("alone", "stream", "loader"):
        assert 0 < only[entrant]["arrived"] < 1e5
    # A null trainer's clips are never decoded faster than decoders alone do, but for the noise of a loaded machine.
    assert only["stream"]["arrived"] < 2 * only["alone"]["arrived"]
    assert only["fed"]["decode_ms"] > 0
    ET.parse(tmp_path / "a.svg")

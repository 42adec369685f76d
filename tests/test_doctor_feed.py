"""What bounded a run, by its metrics: each stage in turn, whole run and last interval, and the verb's exit status."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayjepa.bench.feed_verdict import FED, Feeding, verdict
from rayjepa.cli import main
from rayjepa.config import resolve, to_yaml
from rayjepa.doctor.feed import fed_by, feed_findings
from rayjepa.train.history import History

RUN = resolve("tiny", {"cluster.decoders": 4, "cluster.block": 2, "cluster.prefetch": 6})
BUSY = Feeding(
    steps=100, step_ms=100.0, wait_ms=30.0, clips_per_s=320.0, transfer_ms=4.0, blocks_per_s=10.0, decode_ms=12.0,
    decode_cpu_ms=11.0, read_ms=0.2, read_mb=0.0, busy_share=0.96,
)  # fmt: skip


def test_a_run_that_hardly_waits_is_bound_by_its_device() -> None:
    said = verdict(replace(BUSY, wait_ms=0.9 * FED * 100, busy_share=0.5), RUN)
    assert (said.bound, said.remedies, said.short) == ("device", (), 0.0)
    assert "3.8 of 7.7 decode actors idle" in said.found


def test_busy_decoders_are_short_of_cores_and_the_words_say_how_many() -> None:
    said = verdict(BUSY, RUN)
    assert said.bound == "decode"
    # 320 clips/s in 70 % of the time are 457 clips/s of demand; x 1.2 x 12 ms = 6.58 decoders, and there are 4.
    assert said.short == pytest.approx(1.2 * 320 / 0.7 * 0.012 - 4)
    assert "2.6 more are needed for 1.2 x the 457 clips/s" in said.found
    assert "cluster.decoders (now 4)" in said.remedies[0]
    assert not any("i420" in remedy for remedy in said.remedies)
    rgb = verdict(BUSY, resolve("tiny", {"data.pixels": "rgb"}))
    assert any("data.pixels=i420" in remedy for remedy in rgb.remedies)


def test_decode_actors_are_counted_by_their_work_and_not_by_who_was_seen() -> None:
    assert BUSY.actors == pytest.approx(4)
    assert replace(BUSY, busy_share=0.48).actors == pytest.approx(8)
    assert replace(BUSY, busy_share=0.48, most_actors=6).actors == 6
    assert Feeding(steps=1, step_ms=1.0, wait_ms=0.0, clips_per_s=1.0).actors is None


def test_decoders_that_wait_for_storage_are_told_to_share_cores() -> None:
    said = verdict(replace(BUSY, decode_ms=50.0, read_ms=40.0, read_mb=2.5), RUN)
    assert said.bound == "storage"
    assert "40 of a clip's 50 ms is waiting for storage, 2.50 MB" in said.found
    knobs = " ".join(said.remedies)
    assert all(knob in knobs for knob in ("cluster.decoders", "data.node_cache_gib", "data.whole_mib"))


def test_decoders_whose_cores_others_use_are_told_so() -> None:
    said = verdict(replace(BUSY, decode_ms=30.0), RUN)
    assert said.bound == "cores"
    assert "cluster.decode_label" in said.remedies[0]


def test_idle_decoders_and_a_busy_reader_are_bound_by_transfer() -> None:
    said = verdict(replace(BUSY, busy_share=0.5, transfer_ms=95.0), RUN)
    assert said.bound == "transfer"


def test_idle_decoders_and_waiting_steps_are_bound_by_the_stream() -> None:
    slow = verdict(replace(BUSY, busy_share=0.5, blocks_per_s=5.0), RUN)
    many = verdict(replace(BUSY, busy_share=0.5, blocks_per_s=90.0), RUN)
    assert slow.bound == many.bound == "stream"
    assert "cluster.prefetch (now 6)" in slow.remedies[0]
    assert "cluster.block (now 2)" in many.remedies[0]


def test_takers_without_end_are_not_told_how_many_decoders_are_short() -> None:
    said = verdict(replace(BUSY, wait_ms=100.0, is_endless=True), RUN)
    assert (said.bound, said.short) == ("decode", 0.0)
    assert "each more gives 83.3 clips/s" in said.found


def test_a_run_in_one_process_is_told_to_decode_beside_its_steps() -> None:
    alone = resolve("tiny", {"cluster.workers": 0, "train.engine": "plain"})
    said = verdict(Feeding(steps=8, step_ms=10.0, wait_ms=5.0, clips_per_s=40.0), alone)
    assert said.bound == "decode"
    assert "cluster.workers=1" in said.remedies[0]


def line(*, wait_ms: float, step_ms: float = 100.0, **more: float) -> dict[str, Any]:
    """A step's line of the metrics, of a run that has all of it."""
    said = {"data/transfer_ms": 4.0, "data/blocks_per_s": 10.0, "data/decode_ms": 96.0, "data/decode_cpu_ms": 88.0}
    said |= {"data/read_ms": 0.2, "data/read_mb": 0.0, "data/busy_share": 0.96}
    clips_per_s = 1000 * RUN.train.clips / step_ms
    return {"data/wait_ms": wait_ms, "time/step_ms": step_ms, "rate/clips_per_s": clips_per_s, **said, **more}


def a_run(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """A run's folder with these lines, of ten steps each, of one attempt."""
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(to_yaml(RUN))
    history = History(folder, attempt=1)
    for number, values in enumerate(lines):
        history.append("step", step=10 * number + 9, steps=10, trained=[[40 * number, 40 * number + 40]], **values)
    history.close()
    return folder


def test_the_first_interval_fills_the_pipeline_and_does_not_count(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "run", [line(wait_ms=90.0), *[line(wait_ms=0.5)] * 6])
    found = feed_findings(run_dir)
    assert [finding.state for findings in found.values() for finding in findings].count("ok") == 9
    assert "0.500 of a step's 100 ms, over 60 steps" in found["whole run"][1].found
    assert "steady" in found["trend"][0].found


def test_long_intervals_count_for_longer() -> None:
    few, many = {**line(wait_ms=0.0), "steps": 1}, {**line(wait_ms=40.0, step_ms=200.0), "steps": 3}
    fed = fed_by([few, many])
    assert (fed.step_ms, fed.wait_ms) == (175.0, 30.0)
    assert fed.clips_per_s == pytest.approx(1000 * RUN.train.clips / 175)


def test_waits_that_rise_are_a_warning_of_their_own(tmp_path: Path) -> None:
    found = feed_findings(a_run(tmp_path / "run", [line(wait_ms=1.0 + k**2) for k in range(7)]))
    assert found["trend"][0].state == "warning"
    assert found["trend"][0].found.endswith("rising")
    assert found["last interval"][0].state == "warning"


@pytest.mark.parametrize(("wait_ms", "status"), [(0.5, 0), (20.0, 3), (70.0, 1)])
def test_the_verb_ends_with_the_status_of_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wait_ms: float, status: int
) -> None:
    run_dir = a_run(tmp_path / "run", [line(wait_ms=wait_ms)] * 4)
    assert main(["doctor", "feed", str(run_dir), "--json", str(tmp_path / "f.json")]) == status
    said = capsys.readouterr().out
    assert all(group in said for group in ("whole run", "last interval", "trend"))
    assert ("cluster.decoders (now 4)" in said) == (status != 0)
    assert {f["group"] for f in json.loads((tmp_path / "f.json").read_text())["findings"]} >= {"whole run", "trend"}


def test_a_run_of_an_older_version_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {key: line(wait_ms=30.0)[key] for key in ("data/wait_ms", "time/step_ms", "rate/clips_per_s")}
    assert main(["doctor", "feed", str(a_run(tmp_path / "run", [old] * 4))]) == 3
    said = capsys.readouterr().out
    assert "unknown: steps wait 30 % of their time" in said
    assert "an older version" in said


def test_a_run_without_a_step_and_a_folder_without_a_run_get_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "feed", str(a_run(tmp_path / "run", []))]) == 3
    assert "no step has been reported yet" in capsys.readouterr().out
    assert main(["doctor", "feed", str(tmp_path)]) == 2
    assert main(["doctor", "feed"]) == 2
    assert main(["doctor", "--preset", "tiny", "feed", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds no run" in said
    assert "`rayjepa doctor feed RUN_DIR`" in said

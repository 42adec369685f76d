"""What could not be decoded has a row each, in a file, on the page and in the printed totals; too much ends the run."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayjepa.cli import main
from rayjepa.config import resolve
from rayjepa.data import manifest, synthetic
from rayjepa.data.index import indexing
from rayjepa.report import printed, read_digest, write_report
from rayjepa.train.ahead import cover, longest_wait_s, seconds_ahead
from rayjepa.train.attempts import record_attempt
from rayjepa.train.history import History, read_history
from rayjepa.train.quarantine import NAME, SCHEMA, quarantine, write_quarantine

TINY = ["--preset", "tiny", "cluster.workers=0", "train.engine=plain", "data.retries=0"]


def failed(index: int, attempt: int = 0, *, step: int, **fields: object) -> dict[str, object]:
    """A failure as the loop hands it to the history."""
    named = {"uri": f"/v/{index}-{attempt}.mp4", "stage": "decode", "kind": "content", "reason": "no frames"}
    return (
        {"index": index, "attempt": attempt, "video": index, "step": step, "substitute": "/v/good.mp4"} | named | fields
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two lives of a run, the second from step 4 on: it repeats step 5, whose sample fails again, and differently."""
    for start, lines in (
        (
            0,
            [
                failed(2, step=0),
                failed(2, 1, step=0),
                failed(21, step=5, stage="child", kind="crash", reason="SIGSEGV"),
            ],
        ),
        (4, [failed(21, step=5, stage="child", kind="deadline", reason="cpu deadline 20 s")]),
    ):
        before = tmp_path / "checkpoints" / "step-00000004-attempt-0001" if start else None
        number = record_attempt(tmp_path, owner="o", checkpoint=before, start=start, world=1).attempt
        history = History(tmp_path, attempt=number)
        history.append("held_out", **failed(7, step=start, uri="/v/held.mp4", reason="empty file"))
        for line in lines:
            history.append("failure", **line)
        history.append("step", step=start + 3, trained=[[4 * start, 4 * start + 16]])
    return tmp_path


def test_each_failure_is_a_row_in_order_and_says_whether_it_was_undone(run_dir: Path) -> None:
    table = quarantine(read_history(run_dir))
    assert table.schema == SCHEMA
    names = ("clips", "attempt_of_run", "step", "index", "attempt", "kind", "undone")
    assert [tuple(row[name] for name in names) for row in table.to_pylist()] == [
        ("training", 1, 0, 2, 0, "content", False),
        ("training", 1, 0, 2, 1, "content", False),
        ("health", 1, 0, 7, 0, "content", False),
        ("training", 1, 5, 21, 0, "crash", True),
        ("health", 2, 4, 7, 0, "content", False),
        ("training", 2, 5, 21, 0, "deadline", False),
    ]
    assert table.column("substitute").to_pylist() == ["/v/good.mp4"] * 6
    assert table.column("uri")[0].as_py() == "/v/2-0.mp4"


def test_the_file_is_whole_and_takes_the_place_of_the_one_before(run_dir: Path) -> None:
    (run_dir / NAME).write_text("torn")
    assert write_quarantine(run_dir, read_history(run_dir)) == run_dir / NAME
    assert pq.read_table(run_dir / NAME).equals(quarantine(read_history(run_dir)))
    assert [path.name for path in run_dir.iterdir() if "quarantine" in path.name] == [NAME]


def test_without_a_failure_the_file_has_no_rows(tmp_path: Path) -> None:
    write_quarantine(tmp_path, read_history(tmp_path))
    found = pq.read_table(tmp_path / NAME)
    assert (found.num_rows, found.schema) == (0, SCHEMA)


def test_the_page_links_the_file_and_counts_by_reason_and_video(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    assert f'<a href="{NAME}">' in text
    assert (run_dir / NAME).is_file()
    for part in (
        "2 samples",
        "after 3 failures",
        "1 more failure in undone steps",
        "By video: 3 videos",
        "cpu deadline",
    ):
        assert part in text
    assert "Of the held-out clips: 1 failure" in text  # of one clip, though two attempts met it
    assert "/v/held.mp4" in text


def test_the_command_prints_the_totals(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "replaced: 2 samples after 3 failures, 6.25 % of samples; 1 more failure in undone steps",
        "  2 x content in decode: no frames",
        "  1 x deadline in child: cpu deadline 20 s",
        "held-out clips: 1 failure",
        "  1 x content in decode: empty file",
        str(run_dir / "report.html"),
    ]


# ---------------------------------------------------------------- whole runs over bad data


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Path, manifest.Manifest]:
    """The manifest of 40 videos, of which some are held out; each is a file of its own, and sound when indexed."""
    made = synthetic.make(tmp_path / "cache", 2)
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(40):
        os.link(made / f"{number % 2:06d}.mp4", videos / f"{number:02d}.mp4")
    table = indexing.index(videos, cfg=resolve("tiny", {"data.holdout": 0.3}).data)
    assert len(table.holdout_rows) >= 2
    manifest.write(table, tmp_path / "m.parquet")
    return tmp_path / "m.parquet", table


def empty(table: manifest.Manifest, rows: list[int]) -> None:
    """Damage videos after they were indexed."""
    for row in rows:
        path = Path(table.uri(row))
        path.unlink()
        path.touch()


def test_a_run_over_bad_data_stops_with_a_summary_and_a_quarantine(
    listed: tuple[Path, manifest.Manifest], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, table = listed
    bad = [*table.train_rows[::2].tolist(), int(table.holdout_rows[0])]
    empty(table, bad)
    words = [f"data.videos={path}", f"out={tmp_path}", "name=bad", "train.steps=20", "train.clips=16"]
    words += ["data.substitutes=60", "health.every_steps=100", "checkpoint.every_steps=100"]
    assert main(["pretrain", *TINY, *words]) == 1
    outcome = json.loads((tmp_path / "bad" / "outcome.json").read_text())
    assert outcome["state"] == "failed"
    reason = outcome["reason"]
    for part in (
        "samples could not be decoded",
        "above data.max_bad_share=0.2",
        "content in open: empty file",
        "First: ",
    ):
        assert part in reason
    rows = pq.read_table(tmp_path / "bad" / NAME).to_pylist()
    assert {row["uri"] for row in rows} <= {table.uri(row) for row in bad}
    assert {row["clips"] for row in rows} == {"training", "health"}
    assert {row["uri"] for row in rows if row["clips"] == "health"} == {table.uri(bad[-1])}
    samples = {row["index"] for row in rows if row["clips"] == "training"}
    assert reason.startswith(f"{len(samples)} of ")
    assert not any(row["undone"] for row in rows)
    good = {table.uri(row) for row in range(len(table))} - {table.uri(row) for row in bad}
    assert {row["substitute"] for row in rows} <= good


def test_a_run_whose_first_clips_are_all_bad_says_so_in_one_sentence(
    listed: tuple[Path, manifest.Manifest], tmp_path: Path
) -> None:
    path, table = listed
    empty(table, table.train_rows.tolist())
    words = [f"data.videos={path}", f"out={tmp_path}", "name=first"]
    assert main(["pretrain", *TINY, *words]) == 1
    reason = json.loads((tmp_path / "first" / "outcome.json").read_text())["reason"]
    first = reason.splitlines()[0]
    assert first.startswith("sample ")
    assert "none of 9 videos could be decoded" in first
    assert "9 x content in open: empty file. Mend the files, or index them again" in first


# ---------------------------------------------------------------- what is decoded ahead


@pytest.mark.parametrize(
    ("prefetch", "accumulation", "step_s", "ahead_s"), [(2, 1, 1.5, 3.0), (2, 4, 2.0, 1.0), (10, 2, 0.5, 2.5)]
)
def test_prefetch_covers_its_micro_batches_and_no_more(
    prefetch: int, accumulation: int, step_s: float, ahead_s: float
) -> None:
    sizes = {"cluster.prefetch": prefetch, "train.accumulation": accumulation, "train.clips": 8, "cluster.workers": 1}
    run = resolve("tiny", {**sizes, "data.decode_wall_s": 100, "data.retries": 1})
    assert seconds_ahead(run, step_s=step_s) == ahead_s
    assert longest_wait_s(run, step_s=step_s) == 200 - ahead_s
    assert longest_wait_s(run, step_s=1e6) == 0


def test_a_run_is_told_once_for_how_long_a_clip_can_stop_it() -> None:
    run = resolve("tiny", {"cluster.prefetch": 4, "data.retries": 2})
    said = cover(run, {"time/step_ms": 600.0, "data/wait_ms": 100.0})
    assert said == (
        "prefetch holds 2 s of clips (cluster.prefetch); a clip may take data.decode_wall_s=120 s, 3 times over "
        "(data.retries): one that hangs makes all workers wait up to 358 s"
    )
    slow = cover(run, {"time/step_ms": 600e3, "data/wait_ms": 0.0})
    assert slow.endswith("a clip that hangs is given up before a worker has to wait for it")
    assert cover(run, {}) == ""
    assert cover(resolve("tiny", {"cluster.workers": 0}), {"time/step_ms": 600.0, "data/wait_ms": 0.0}) == ""


def test_totals_of_a_run_without_failures_are_one_line(tmp_path: Path) -> None:
    assert printed(read_digest(tmp_path)) == "replaced: 0 samples after 0 failures"

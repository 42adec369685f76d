import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rayjepa.train.attempts import newest_attempt, read_attempts, record_attempt
from rayjepa.train.board import open_board
from rayjepa.train.history import History, begin_attempt, coverage, merge, read_history


def _attempt(run_dir: Path, start: int, checkpoint: str | None = None) -> int:
    path = None if checkpoint is None else run_dir / checkpoint
    return record_attempt(run_dir, owner="me", checkpoint=path, start=start, world=2).attempt


def _steps(run_dir: Path, attempt: int, steps: range, *, clips: int = 4) -> None:
    history = History(run_dir, attempt=attempt)
    for step in steps:
        history.append("step", step=step, trained=[[step * clips, (step + 1) * clips]])
    history.flush()


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    history = History(tmp_path, attempt=_attempt(tmp_path, 0))
    history.append("step", step=0, trained=[[0, 4]], **{"loss/latent": 0.5})
    history.append("failure", step=0, attempt=2, index=3, kind="content", uri="a.mp4")
    history.flush()
    step, failure = read_history(tmp_path).lines
    assert step["loss/latent"] == 0.5
    assert (step["kind"], step["attempt"], step["step"], step["undone"]) == ("step", 1, 0, False)
    assert (failure["attempt"], failure["attempt_of_run"], failure["index"]) == (2, 1, 3)
    assert (failure["kind"], failure["failure_kind"]) == ("failure", "content")


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    history = History(tmp_path, attempt=1, lines=2)
    for step in range(5):
        history.append("step", step=step)
    files = sorted(tmp_path.glob("metrics/*"))
    assert [p.name for p in files] == [f"attempt-0001-{n:06d}.jsonl" for n in range(3)]
    assert [len(p.read_text().splitlines()) for p in files] == [2, 2, 1]
    assert [line["step"] for line in read_history(tmp_path).lines] == list(range(5))


def test_ranks_other_than_0_write_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, attempt=1, rank=1)
    history.append("step", step=0)
    history.flush()
    assert not (tmp_path / "metrics").exists()


def test_numbers_reach_tensorboard_from_the_attempts_start_on(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for attempt, steps in ((1, range(4)), (2, range(2, 5))):
        history = History(tmp_path, attempt=attempt, board=open_board(tmp_path, start=steps[0]))
        for step in steps:
            history.append("step", step=step, trained=[[0, 4]], **{"loss/latent": float(attempt)})
        history.flush()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss/latent"]
    assert [(e.step, e.value) for e in events.Scalars("loss/latent")] == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)]


def test_a_missing_tensorboard_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_board(tmp_path, start=0) is None
    assert "install tensorboard, or set report.tensorboard=false" in caplog.text


def test_a_kill_keeps_every_line(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from rayjepa.train.history import History
history = History(Path(sys.argv[1]), attempt=1)
for step in range(10):
    history.append("step", step=step)
history.flush()
history.append("step", step=10)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert [line["step"] for line in read_history(tmp_path).lines] == list(range(11))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    _steps(tmp_path, 1, range(2))
    (tmp_path / "metrics" / "attempt-0001-000001.jsonl").write_text('{"kind": "step", "st\n')
    with pytest.raises(RuntimeError, match=r"attempt-0001-000001\.jsonl, line 1"):
        read_history(tmp_path)


def test_a_line_that_was_cut_off_never_was(tmp_path: Path) -> None:
    _steps(tmp_path, 1, range(2))
    with (tmp_path / "metrics" / "attempt-0001-000000.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 2')
    assert [line["step"] for line in read_history(tmp_path).lines] == [0, 1]


def test_a_later_attempt_undoes_the_steps_that_it_repeats(tmp_path: Path) -> None:
    first = _attempt(tmp_path, 0)
    _steps(tmp_path, first, range(7))
    second = _attempt(tmp_path, 4)
    _steps(tmp_path, second, range(4, 8))
    lines = read_history(tmp_path).lines
    assert [(x["attempt"], x["step"]) for x in lines if x["undone"]] == [(1, 4), (1, 5), (1, 6)]


def test_a_health_line_stands_if_an_attempt_begins_right_there(tmp_path: Path) -> None:
    history = History(tmp_path, attempt=_attempt(tmp_path, 0))
    for finished in (0, 4, 5):
        history.append("health", step=finished)
    history.flush()
    _attempt(tmp_path, 4)
    assert [(x["step"], x["undone"]) for x in read_history(tmp_path).lines] == [(0, False), (4, False), (5, True)]


def test_a_history_with_undone_steps_covers_every_sample_once(tmp_path: Path) -> None:
    _steps(tmp_path, _attempt(tmp_path, 0), range(7))
    _steps(tmp_path, _attempt(tmp_path, 4), range(4, 6))
    _steps(tmp_path, _attempt(tmp_path, 4), range(4, 8))
    assert coverage(tmp_path, 32) == ([], [])


def test_a_late_line_of_a_group_that_was_given_up_counts_for_nothing(tmp_path: Path) -> None:
    old = _attempt(tmp_path, 0)
    _steps(tmp_path, old, range(4))
    _steps(tmp_path, _attempt(tmp_path, 4), range(4, 8))
    zombie = History(tmp_path, attempt=old)
    zombie.append("step", step=6, trained=[[24, 28]])
    zombie.flush()
    assert coverage(tmp_path, 32) == ([], [])


def test_coverage_names_what_is_missing_and_what_is_there_twice(tmp_path: Path) -> None:
    history = History(tmp_path, attempt=_attempt(tmp_path, 0))
    history.append("step", step=0, trained=[[0, 4], [6, 8]])
    history.append("step", step=1, trained=[[7, 16]])
    history.flush()
    assert coverage(tmp_path, 20) == ([[4, 6], [16, 20]], [[7, 8]])


def test_samples_of_a_step_that_was_passed_over_are_covered(tmp_path: Path) -> None:
    history = History(tmp_path, attempt=_attempt(tmp_path, 0))
    history.append("step", step=0, trained=[[0, 4]])
    history.append("refused", step=1, reason="loss is nan", samples=[[4, 8]])
    history.flush()
    assert coverage(tmp_path, 8) == ([], [])


def test_an_empty_history_covers_nothing(tmp_path: Path) -> None:
    assert coverage(tmp_path, 8) == ([[0, 8]], [])


def test_ranges_that_touch_are_joined_and_ranges_that_overlap_are_not() -> None:
    assert merge([[4, 8], [0, 4], [8, 9]]) == [[0, 9]]
    assert merge([[0, 4], [2, 6]]) == [[0, 4], [2, 6]]


def test_attempts_are_numbered_without_gaps_by_drivers_that_race(tmp_path: Path) -> None:
    racers = [threading.Thread(target=_attempt, args=(tmp_path, 0)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(read_attempts(tmp_path)) == list(range(1, 9))


def test_an_attempt_whose_record_was_never_written_never_began(tmp_path: Path) -> None:
    _attempt(tmp_path, 0)
    (tmp_path / "attempts" / "0002.json").write_text("")
    assert sorted(read_attempts(tmp_path)) == [1]
    assert _attempt(tmp_path, 0) == 3


def test_a_first_attempt_begins_at_step_0(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path, owner="me", world=2)
    assert (attempt.attempt, attempt.start, attempt.checkpoint, attempt.owner) == (1, 0, None, "me")
    record = json.loads((tmp_path / "attempts" / "0001.json").read_text())
    assert record.keys() == {"attempt", "start", "checkpoint", "world", "owner", "unix_s", "host"}
    assert newest_attempt(tmp_path, owner="me") == attempt


def test_a_driver_that_was_followed_by_another_is_told_so(tmp_path: Path) -> None:
    begin_attempt(tmp_path, owner="old", world=1)
    begin_attempt(tmp_path, owner="new", world=1)
    with pytest.raises(RuntimeError, match="attempt 2 belongs to driver new"):
        newest_attempt(tmp_path, owner="old")

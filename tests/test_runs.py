"""The table of runs: states told from what drivers leave behind, and numbers of the surviving history."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rayjepa.config import resolve, to_yaml
from rayjepa.report import list_runs, runs_table
from rayjepa.train.attempts import record_attempt
from rayjepa.train.history import History

NOW = 2e9
HERE = {"host": socket.gethostname(), "pid": os.getpid(), "owner": "o", "unix_s": NOW - 500}


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def make(folder: Path, name: str, **files: dict[str, object]) -> Path:
    """A run folder with the files that are given, by stem."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "run.yaml").write_text(to_yaml(resolve("tiny", {"name": name, "out": str(folder)})))
    for stem, content in files.items():
        (run / f"{stem}.json").write_text(json.dumps(content))
    return run


def state(run: Path) -> str:
    return list_runs(run, now=NOW)[0].state


@pytest.mark.parametrize("ended", ["finished", "failed", "stopped"])
def test_an_outcome_is_the_state(tmp_path: Path, gone: int, ended: str) -> None:
    outcome = {"state": ended, "reason": "why", "finished": 3, "unix_s": NOW - 100}
    assert state(make(tmp_path, "a", driver=HERE | {"pid": gone}, outcome=outcome)) == ended


def test_an_outcome_from_before_the_driver_is_no_longer_the_state(tmp_path: Path) -> None:
    outcome = {"state": "failed", "reason": "why", "finished": 3, "unix_s": NOW - 600}
    assert state(make(tmp_path, "a", driver=HERE, outcome=outcome)) == "running"


def test_a_run_whose_driver_lives_here_is_running_however_long_it_is_silent(tmp_path: Path) -> None:
    old = {"state": "training", "step": 3, "steps": 8, "unix_s": NOW - 400}
    assert state(make(tmp_path, "a", driver=HERE, progress=old)) == "running"


def test_a_run_whose_driver_is_gone_from_here_is_interrupted(tmp_path: Path, gone: int) -> None:
    fresh = {"state": "training", "step": 3, "steps": 8, "unix_s": NOW - 1}
    run = make(tmp_path, "a", driver=HERE | {"pid": gone}, progress=fresh)
    assert state(run) == "interrupted"
    assert f"process {gone}" in list_runs(run, now=NOW)[0].reason


def test_a_later_process_with_the_drivers_number_is_not_the_driver(tmp_path: Path) -> None:
    assert state(make(tmp_path, "a", driver=HERE | {"born": "1"})) == "interrupted"


@pytest.mark.parametrize(("silent_s", "expected"), [(30, "running"), (90, "interrupted")])
def test_a_run_driven_from_elsewhere_is_judged_by_its_silence(tmp_path: Path, silent_s: int, expected: str) -> None:
    progress = {"state": "training", "step": 3, "steps": 8, "unix_s": NOW - silent_s}
    assert state(make(tmp_path, "a", driver=HERE | {"host": "elsewhere"}, progress=progress)) == expected


def test_a_torn_progress_file_is_as_good_as_none(tmp_path: Path) -> None:
    run = make(tmp_path, "a", driver=HERE)
    (run / "progress.json").write_text('{"state": "trai')
    assert state(run) == "running"


def test_the_numbers_are_those_of_the_surviving_history(tmp_path: Path) -> None:
    run = make(tmp_path, "a", driver=HERE)
    for number, (steps, rate, rank) in enumerate([(range(4), 10.0, 5.0), (range(2, 5), 30.0, 7.0)], start=1):
        record_attempt(run, owner="o", checkpoint=run / "c" if steps.start else None, start=steps.start, world=1)
        lines = History(run, attempt=number)
        for step in steps:
            lines.append("step", step=step, trained=[[4 * step, 4 * step + 4]], **{"rate/clips_per_s": rate})
            lines.append("failure", step=step, index=4 * step, attempt=0, uri="u", stage="open", kind="io", reason="r")
        lines.append("health", step=steps.stop, **{"collapse/rankme": rank, "collapse/rankme_floor": 2.0})
        lines.flush()
    (summary,) = list_runs(tmp_path, now=NOW)
    assert (summary.step, summary.steps, summary.quarantined) == (5, 8, 5)
    assert (summary.rankme, summary.rankme_floor, summary.clips_per_s) == (7.0, 2.0, 30.0)


def test_the_table_is_aligned_and_names_what_went_wrong(tmp_path: Path, gone: int) -> None:
    make(tmp_path, "short", driver=HERE)
    make(tmp_path, "a-long-name", outcome={"state": "failed", "reason": "disk full", "finished": 3, "unix_s": NOW - 90})
    (tmp_path / "no-run").mkdir()
    head, first, second, blank, reason = runs_table(list_runs(tmp_path, now=NOW)).splitlines()
    assert first.startswith("a-long-name  failed ")
    assert second.startswith("short        running")
    assert head.index("STATE") == first.index("failed") == second.index("running")
    assert "3/8" in first
    assert "1 min 30 s ago" in first
    assert (blank, reason) == ("", "a-long-name: disk full")


@pytest.mark.parametrize(("name", "says"), [("nowhere", "is no folder"), (".", "holds no run")])
def test_a_folder_without_runs_is_an_error_with_a_remedy(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list_runs(tmp_path / name)

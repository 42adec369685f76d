"""profile.steps=A:B: a trace of just these steps, also where the run begins or ends between them."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from made_clips import made_stream

from rayjepa.cli import main
from rayjepa.config import ConfigError, RunConfig, resolve
from rayjepa.data import synthetic
from rayjepa.data.batch import ClipBatch
from rayjepa.model import build
from rayjepa.train.attempts import Attempt
from rayjepa.train.loop import train
from rayjepa.train.plain import PlainEngine
from rayjepa.train.profile import Profile

CPU = torch.device("cpu")


def _run(steps: str | None) -> RunConfig:
    return resolve("tiny", {"cluster.workers": 0, "train.steps": 6, "profile.steps": steps})


def _attempt(start: int) -> Attempt:
    return Attempt(attempt=1, start=start, checkpoint=None, world=1, owner="me", unix_s=0.0, host="here")


def _traced(run: RunConfig, folder: Path, *, start: int = 0, batches: Iterator[ClipBatch] | None = None) -> list[str]:
    """Train with a profile; return the names of the files that it left."""
    profile = Profile(run, folder, _attempt(start), rank=0, device=CPU)
    engine = PlainEngine(run, build(run), device=CPU)
    try:
        clips = batches or made_stream(run, start=start)
        train(engine, clips, run, start=start, report=lambda metrics, _: None, begin=profile.begin)
    except OSError:
        pass
    finally:
        profile.close()
    return sorted(path.name for path in (folder / "profile").glob("*"))


def _steps(trace: Path) -> int:
    """Steps that a trace holds: each has forward passes of the loop's two mask types, one of them with backward."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert "aten::addmm" in names
    return len({name for name in names if name.startswith("ProfilerStep#")})


@pytest.mark.parametrize("steps", ["10", "a:b", "3:3", "4:2", "-1:2", "1:2:3", ""])
def test_only_two_rising_whole_numbers_are_steps(steps: str) -> None:
    if steps == "":
        assert _run(steps).profile.span is None
        return
    with pytest.raises(ConfigError, match=r"profile\.steps=.* must be A:B"):
        _run(steps)


def test_steps_behind_the_last_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"profile\.steps=2:7 ends behind train\.steps=6"):
        _run("2:7")
    assert _run("2:6").profile.span == (2, 6)


def test_a_trace_holds_its_steps_and_lies_beside_a_table(tmp_path: Path) -> None:
    names = _traced(_run("2:4"), tmp_path)
    assert names == ["step-2-4-rank-0.json.gz", "step-2-4-rank-0.txt"]
    assert _steps(tmp_path / "profile" / names[0]) == 2
    table = (tmp_path / "profile" / names[1]).read_text()
    assert table.startswith("steps 2 to 3, rank 0")
    assert "aten::addmm" in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "start", "name"),
    [("0:2", 0, "step-0-2"), ("4:6", 0, "step-4-6"), ("1:5", 3, "step-3-5"), ("1:3", 3, None), (None, 0, None)],
)
def test_a_run_gives_the_steps_that_it_takes(steps: str | None, start: int, name: str | None, tmp_path: Path) -> None:
    names = _traced(_run(steps), tmp_path, start=start)
    assert names == ([f"{name}-rank-0.json.gz", f"{name}-rank-0.txt"] if name else [])


@pytest.mark.slow
@pytest.mark.parametrize(("died", "name"), [(3, "step-2-4"), (1, None)])
def test_a_run_that_breaks_gives_what_it_has(died: int, name: str | None, tmp_path: Path) -> None:
    run = _run("2:5")

    def breaking() -> Iterator[ClipBatch]:
        for step, clips in enumerate(made_stream(run)):
            if step == died:
                raise OSError("the stream is gone")
            yield clips

    names = _traced(run, tmp_path, batches=breaking())
    assert names == ([f"{name}-rank-0.json.gz", f"{name}-rank-0.txt"] if name else [])


def test_other_ranks_trace_nothing(tmp_path: Path) -> None:
    profile = Profile(_run("0:2"), tmp_path, _attempt(0), rank=1, device=CPU)
    for step in range(3):
        profile.begin(step)
    profile.close()
    assert not (tmp_path / "profile").exists()


@pytest.mark.slow
def test_the_command_says_where_the_trace_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    videos = synthetic.make(tmp_path / "videos", 4)
    words = ["cluster.workers=0", "train.engine=plain", "train.steps=2", f"data.videos={videos}", f"out={tmp_path}"]
    assert main(["pretrain", "--preset", "tiny", *words, "name=run", "profile.steps=1:2"]) == 0
    assert f"trace {tmp_path / 'run' / 'profile' / 'step-1-2-rank-0.json.gz'}" in caplog.text

"""`rayjepa plan`: figures without a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_clips import made_clips

from rayjepa.cli import main
from rayjepa.cli.budgeted import remarks
from rayjepa.cli.plan import drawn_counts
from rayjepa.config import RunConfig, resolve
from rayjepa.masks import splits_for
from rayjepa.model import build, sizes
from rayjepa.train.budget import Budget, budget, gpu_named
from rayjepa.train.plain import PlainEngine

COUNTS = [((500, 970), (130, 1440))]


def _plan(run: RunConfig, gpu: str = "h100") -> Budget:
    encoder, predictor = sizes(run)
    return budget(run, encoder=encoder, predictor=predictor, drawn=COUNTS, gpu=gpu_named(gpu), mfu=0.4)


def _large(**overrides: object) -> RunConfig:
    base = {"cluster.workers": 64, "train.clips": 3072}
    return resolve(None, base | {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "h101"], "--gpu h101 is not known; choose one of a100, h100, h200, b200, l40s; nearest: h100"),
        (["--mfu", "0"], "--mfu 0.0 must be in (0, 1]"),
        (["--mfu", "1.5"], "--mfu 1.5 must be in (0, 1]"),
        (["--mfu", "nan"], "--mfu nan must be in (0, 1]"),
        (["--price", "-1"], "--price -1.0 must be at least 0"),
        (["--clips-per-core", "0"], "--clips-per-core 0.0 must be above 0"),
        (["cluster.worker=64"], "unknown key cluster.worker; nearest: cluster.workers"),
        (["cluster.workers=5"], "train.clips=4 is not a multiple of 5 worker(s)"),
        (["masks.kind=tube", "masks.ratio=0.99"], "both need at least one"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "tiny", *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_the_page_and_the_file_tell_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "cluster.workers=0",
        "zero.stage=2",
        "--price",
        "2",
        "--gpu",
        "H200",
        "--json",
        str(tmp_path / "plan.json"),
    ]
    assert main(["plan", "--preset", "tiny", *words]) == 0
    page, file = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert (file["grid"], file["tokens"], file["ranks"], file["engine"]) == ([2, 4, 4], 32, 1, "zero2")
    assert "1 GPU of kind H200 SXM, 40% MFU" in page
    assert "> ZeRO-2" in page
    assert f"2 x 4 x 4 = {file['tokens']}" in page
    assert f"encoder {file['parameters']['encoder']:,}" in page
    assert file["cost"] == pytest.approx(2 * file["gpu_hours"])
    assert file["masks_drawn_steps"] == 8  # no more than the run has steps
    assert file["decode_cores"] == pytest.approx(file["clips_per_s"] / file["clips_per_core_s"])


def test_drawn_counts_are_those_of_the_runs_batches() -> None:
    run = resolve("demo", {"train.steps": 3})
    clips = made_clips(run, range(2))
    for step, counts in enumerate(drawn_counts(run)):
        splits = splits_for(run, step=step, specs=clips.specs)
        assert counts == [(split.context.shape[1], split.target.shape[1]) for split in splits]


@pytest.mark.slow
def test_the_checkpoint_is_as_large_as_said(tmp_path: Path) -> None:
    run = resolve("demo", {"cluster.workers": 0, "model.depth": 2})
    PlainEngine(run, build(run), device=torch.device("cpu")).save(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert _plan(run).checkpoint_bytes == pytest.approx(size, rel=0.02)


def test_what_does_not_fit_is_told_with_the_knobs_that_help() -> None:
    assert remarks(_large(), _plan(_large())) == []
    fuller = _large(train__clips=3584)
    assert remarks(fuller, _plan(fuller)) == ["warning: the peak is estimated at 95% of the H100 SXM's memory"]
    (warning,) = remarks(_large(), _plan(_large(), "l40s"))
    assert warning.startswith("warning: the peak is estimated at 66.1 GB, the L40S has 48 GB")
    assert "raise train.accumulation=1 (micro-batch of 48), or set train.checkpoint_blocks=true" in warning
    frugal = _large(train__checkpoint_blocks=True)
    assert remarks(frugal, _plan(frugal, "l40s")) == []
    huge = _large(model__width=5120, model__depth=64, model__heads=64, train__checkpoint_blocks=True)
    (error,) = remarks(huge, _plan(huge))
    assert error.startswith("error: 247 GB of model state and buckets do not fit into the H100 SXM's 80 GB")
    assert error.endswith("it fits with ZeRO-3 (train.engine, zero.stage)")


@pytest.mark.slow
def test_nothing_is_started() -> None:
    """Neither Ray nor DeepSpeed is imported, and no process made."""
    script = """
import os, sys
from rayjepa.cli import main
def forbidden(event, args):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "socket.connect", "socket.bind"):
        os._exit(3)
sys.addaudithook(forbidden)
status = main(["plan", "cluster.workers=8"])
assert not {"ray", "deepspeed"} & set(sys.modules)
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

"""The command line as a user meets it: mistakes cost seconds, say what to do, and show no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayjepa.cli import main
from rayjepa.data import synthetic
from rayjepa.train import folder
from rayjepa.train.history import coverage, read_history

TINY = ["--preset", "tiny", "cluster.workers=0", "train.engine=plain", "train.steps=3"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make(tmp_path_factory.mktemp("videos"), 6)


def said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    return capfd.readouterr().err + caplog.text


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["data.fraems=16"], 2, "unknown key data.fraems; nearest: data.frames"),
        (["optim.lr=abc"], 2, "optim.lr='abc'"),
        (["--preset", "dmeo"], 2, "unknown preset 'dmeo'"),
        (["cluster.workers=-2"], 2, "cluster.workers=-2 must be at least 0"),
        (["cluster.workers=5"], 2, "train.clips=16 is not a multiple of 5 worker(s)"),
        (["steps"], 2, "'steps' is not key=value"),
        (["data.videos=no/such/folder"], 2, "no/such/folder"),
        (["--resume", "no/such/run"], 2, "is not a run folder"),
        (["--resume", "x", "--preset", "demo"], 2, "exclude each other"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], status: int, sentence: str, capfd, caplog) -> None:
    assert main(["pretrain", *words]) == status
    text = said(capfd, caplog)
    assert sentence in text
    assert "Traceback" not in text


def test_an_unwritable_output_is_named(videos: Path, tmp_path: Path, capfd, caplog) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["pretrain", *TINY, f"data.videos={videos}", f"out={tmp_path / 'file'}"]) == 2
    assert "choose a writable folder" in said(capfd, caplog)


def test_a_run_is_never_overwritten_and_never_silently_resumed(videos: Path, tmp_path: Path, capfd, caplog) -> None:
    words = ["pretrain", *TINY, f"data.videos={videos}", f"out={tmp_path}", "name=one"]
    assert main(words) == 0
    before = (tmp_path / "one" / "run.yaml").read_text()
    assert main(words) == 2
    assert "--resume" in said(capfd, caplog)
    assert (tmp_path / "one" / "run.yaml").read_text() == before


def test_a_run_in_this_process_trains_reports_and_lists_itself(videos: Path, tmp_path: Path, capsys) -> None:
    assert main(["pretrain", *TINY, f"data.videos={videos}", f"out={tmp_path}", "name=one"]) == 0
    run_dir = tmp_path / "one"
    assert coverage(run_dir, 12) == ([], [])
    assert json.loads((run_dir / "outcome.json").read_text())["state"] == "finished"
    assert "<html" in (run_dir / "report.html").read_text()
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["report", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "finished" in out
    assert str(run_dir / "report.html") in out


def test_a_stopped_run_goes_on_where_it_stood(videos: Path, tmp_path: Path) -> None:
    words = ["pretrain", *TINY, f"data.videos={videos}", f"out={tmp_path}", "checkpoint.every_steps=1"]
    assert main([*words, "name=whole"]) == 0
    run_dir = tmp_path / "parts"
    assert main([*words, "name=parts", "optim.max_norm=1e-9"]) == 1  # every step is refused
    assert json.loads((run_dir / "outcome.json").read_text())["state"] == "failed"
    assert main(["pretrain", "--resume", str(run_dir), "optim.max_norm=inf"]) == 0
    assert coverage(run_dir, 12) == ([], [])
    whole, parts = (read_history(tmp_path / n).of("step") for n in ("whole", "parts"))
    assert [x["loss/latent"] for x in whole] == [x["loss/latent"] for x in parts]


def test_a_finished_run_is_not_started_again_but_may_train_on(videos: Path, tmp_path: Path, capfd, caplog) -> None:
    caplog.set_level("INFO")
    assert main(["pretrain", *TINY, f"data.videos={videos}", f"out={tmp_path}", "name=one"]) == 0
    assert main(["pretrain", "--resume", str(tmp_path / "one")]) == 0
    assert "has finished all of train.steps=3" in said(capfd, caplog)
    assert len(read_history(tmp_path / "one").attempts) == 1
    assert main(["pretrain", "--resume", str(tmp_path / "one"), "train.steps=5"]) == 0
    assert coverage(tmp_path / "one", 20) == ([], [])


def test_a_resume_may_not_change_what_was_trained(videos: Path, tmp_path: Path, capfd, caplog) -> None:
    assert main(["pretrain", *TINY, f"data.videos={videos}", f"out={tmp_path}", "name=one"]) == 0
    assert main(["pretrain", "--resume", str(tmp_path / "one"), "model.depth=3"]) == 2
    assert "model.depth cannot change on resume" in said(capfd, caplog)


def test_a_living_driver_keeps_others_out(tmp_path: Path) -> None:
    tmp_path.joinpath("progress.json").touch()
    script = """
import sys, time
from pathlib import Path
from rayjepa.train import folder
folder.claim(Path(sys.argv[1]))
print("ok", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"ok\n"
        with pytest.raises(RuntimeError, match=f"process {driver.pid} on this machine"):
            folder.claim(tmp_path)
        driver.kill()
    assert folder.claim(tmp_path)


def test_index_writes_a_manifest_with_bad_files_as_rows(videos: Path, tmp_path: Path, capsys) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for video in sorted(videos.glob("*.mp4"))[:2]:
        os.link(video, mixed / video.name)
    (mixed / "text.mp4").write_text("this is no video")
    (mixed / "empty.mp4").touch()
    assert main(["index", str(mixed), "-o", str(tmp_path / "m.parquet")]) == 0
    out = capsys.readouterr().out
    assert "2 usable, 2 bad" in out
    assert main(["pretrain", *TINY, f"data.videos={tmp_path / 'm.parquet'}", f"out={tmp_path}", "name=run"]) == 0


def test_help_lists_every_key() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayjepa.cli", "pretrain", "--help"], capture_output=True, text=True, check=True
    )
    for key in ("data.videos", "masks.ratio", "ema.momentum", "predictor.depth", "cluster.workers", "zero.stage"):
        assert f"  {key}=" in done.stdout

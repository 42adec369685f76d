"""What `rayjepa submit` sends, and what it refuses to send: nothing here needs a cluster."""

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from rayjepa.cli import main
from rayjepa.cli.stopping import stop_on_signal
from rayjepa.cli.submit import prepared

TINY = ["--preset", "tiny", "out=/shared/runs"]


@pytest.fixture(autouse=True)
def no_cluster_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(key, raising=False)


def printed(capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The line that `--print` gives, as a shell would take it."""
    assert main(["submit", "--print", *words]) == 0
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    return shlex.split(out)


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", *words]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_the_line_is_what_a_shell_needs(capfd: pytest.CaptureFixture[str]) -> None:
    line = printed(capfd, "--id", "one", "pretrain", *TINY, "data.videos=/my clips/$HOME/*.mp4")
    assert line[:7] == ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--submission-id", "one"]
    assert json.loads(line[8])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "600"
    assert json.loads(line[10]) == {"results": "/shared/runs/one"}
    assert line[11:] == [
        *("--", "rayjepa", "job", "pretrain", "--preset", "tiny"),
        *("out=/shared/runs", "data.videos=/my clips/$HOME/*.mp4", "name=one"),
    ]


def test_a_token_is_named_by_its_place_and_never_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/elsewhere/a token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    line = printed(capfd, "pretrain", *TINY)
    assert line[:3] == ["RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/elsewhere/a token", "ray"]
    assert "secret" not in " ".join(line)


def test_an_address_in_the_environment_cannot_send_the_job_elsewhere(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    line = printed(capfd, "--address", "head:9000/", "pretrain", *TINY)
    assert line[0] == "RAY_API_SERVER_ADDRESS=http://head:9000"
    assert line[line.index("--address") + 1] == "http://head:9000"


def test_ids_and_names_are_unique_by_themselves() -> None:
    names = set()
    for _ in range(5):
        sent, results = prepared("pretrain", TINY, address=None, name=None, working_dir=None)
        assert results == Path("/shared/runs") / sent.name
        assert f"name={sent.name}" in sent.entrypoint
        names.add(sent.name)
    assert len(names) == 5


def test_a_named_run_keeps_its_name_and_a_resumed_one_its_folder() -> None:
    named, results = prepared("pretrain", [*TINY, "name=mine"], address=None, name="id", working_dir=None)
    assert results == Path("/shared/runs/mine")
    assert "name=id" not in named.entrypoint
    words = ["--resume", "/shared/runs/mine", "cluster.workers=4"]
    resumed, results = prepared("pretrain", words, address=None, name="id", working_dir=None)
    assert results == Path("/shared/runs/mine")
    assert resumed.entrypoint == ("rayjepa", "job", "pretrain", *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pretrain", "--preset", "tiny"], "out=runs is relative"),
        (["pretrain", *TINY, "data.videos=clips"], "data.videos=clips is relative"),
        (["pretrain", *TINY, "data.cache=cache"], "data.cache=cache is relative"),
        (["pretrain", "--resume", "runs/one"], "--resume=runs/one is relative"),
        (["pretrain", *TINY, "stpes=3"], "unknown key stpes; nearest: train.steps"),
        (["pretrain", *TINY, "masks.ratio=2"], "masks.ratio=2"),
        (["pretrain", *TINY, "cluster.address=10.0.0.1:6379"], "cluster.address: a job runs on the cluster"),
        (["pretrain", "--preset", "tniy"], "unknown preset 'tniy'"),
        (["sweep", *TINY, "--space", "dmeo"], "unknown space 'dmeo'"),
        (["pretrain", *TINY, "--or-resume"], "--or-resume needs name="),
        (["sweep", *TINY, "--metric", "loss/latent"], "a train loss cannot choose a model"),
        (["sweep", "--preset", "demo"], "out=runs is relative"),
        (["index", "clips", "--out", "/shared/m.parquet"], "SOURCE=clips is relative"),
        (["index", "/shared/clips"], "--out=manifest.parquet is relative"),
        (["index", "/shared/clips", "--out", "/m.parquet", "--labels", "l.csv"], "--labels=l.csv is relative"),
        (["--address", "ray://head:10001", "pretrain", *TINY], "give the URL of the dashboard"),
        (["--id", "a b", "pretrain", *TINY], "--id 'a b' must be"),
        (["--working-dir", "no/such", "pretrain", *TINY], "--working-dir no/such is not a folder"),
    ],
)
def test_a_mistake_costs_no_submission(words: list[str], sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert sentence in refused(capfd, *words)


def test_a_preset_file_travels_in_the_working_directory(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets" / "new").mkdir(parents=True)
    (tmp_path / "presets" / "new" / "mine.yaml").write_text("train: {steps: 3, clips: 4}")
    monkeypatch.chdir(tmp_path)
    given = ["pretrain", "--preset", "presets/new/mine.yaml", "out=/shared/runs"]
    assert f"--working-dir {tmp_path / 'presets' / 'new'}" in refused(capfd, *given)
    line = printed(capfd, "--working-dir", "presets", *given)
    assert line[line.index("--working-dir") + 1] == str(tmp_path / "presets")
    assert line[line.index("--preset") + 1] == "new/mine.yaml"
    assert (tmp_path / "presets" / line[line.index("--preset") + 1]).is_file()


def test_a_job_without_a_cluster_says_how_to_get_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "pretrain", *TINY]) == 2
    assert "`rayjepa submit pretrain …`" in capfd.readouterr().err


def test_a_job_of_another_version_is_refused(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setitem(os.environ, "RAYJEPA_SENT_BY", "0.0.7")
    assert main(["job", "pretrain", *TINY]) == 1
    assert "the job was sent by 0.0.7" in capfd.readouterr().err


def test_a_cluster_that_kills_early_is_told_of(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "127.0.0.1:1")
    words = ["job", "pretrain", "--preset", "tiny", f"out={tmp_path}", "name=one", f"data.videos={tmp_path / 'none'}"]
    assert main(words) == 2
    assert "RAY_JOB_STOP_WAIT_TIME_S is 3 s here" in capfd.readouterr().err + caplog.text
    monkeypatch.setitem(os.environ, "RAY_JOB_STOP_WAIT_TIME_S", "600")
    caplog.clear()
    assert main(words) == 2
    said = capfd.readouterr()
    assert "RAY_JOB_STOP_WAIT_TIME_S" not in said.err + caplog.text
    assert said.out == f"results: none; {tmp_path / 'one'} was not made\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_ends_what_has_nothing_to_save_and_the_second_ends_all(
    tmp_path: Path, number: int
) -> None:
    with stop_on_signal(tmp_path, says="saving", at_once=lambda: True) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stop.asked
        assert not (tmp_path / "stop").exists()
    with stop_on_signal(tmp_path, says="saving") as stop:
        os.kill(os.getpid(), number)
        assert stop.asked
        assert (tmp_path / "stop").exists()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)

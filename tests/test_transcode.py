"""A set of videos is made anew once, whatever interrupts it, and its manifest says what became of each."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import pytest
from footage import make_video

from rayjepa.cli import main
from rayjepa.config import DataConfig, resolve
from rayjepa.data import gain, manifest
from rayjepa.data.index import indexing
from rayjepa.data.jobs import name_of
from rayjepa.data.manifest import Manifest
from rayjepa.data.recipe import Recipe
from rayjepa.data.transcode import MANIFEST, RECIPE, RECORD, UNFINISHED, Outcome, work_in

HERE = ["cluster.workers=0", "data.retries=0"]
QUICK = ["--x264-preset", "ultrafast", "--clips", "2"]
NAMES = ("first.mp4", "späte Blüte 2.mp4", "below/first.mp4")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("footage")
    return [make_video(folder / f"{k}.mp4", frames=20 + k, options={"g": "60"}) for k in range(len(NAMES))]


def folder_of(footage: list[Path], folder: Path) -> Path:
    """A folder of three videos, one file that is none, and labels."""
    for name, video in zip(NAMES, footage, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(video, folder / name)
    (folder / "text.mp4").write_text("this is no video")
    (folder / "labels.csv").write_text("file,kind\n" + "".join(f"{name},kind of {name}\n" for name in NAMES))
    return folder


@pytest.fixture(scope="module")
def videos(footage: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(footage, tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def listed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of that folder."""
    path = tmp_path_factory.mktemp("listed") / "manifest.parquet"
    manifest.write(indexing.index(videos, cfg=DataConfig()), path)
    return path


@pytest.fixture(scope="module")
def done(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command made of it."""
    out = tmp_path_factory.mktemp("done")
    assert transcode(listed, out) == 0
    return out


def transcode(source: Path, out: Path, *words: str) -> int:
    return main(["transcode", str(source), "--out", str(out), *QUICK, *HERE, *words])


def made_in(folder: Path) -> dict[str, int]:
    """Names of the new videos and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}


def test_a_set_keeps_its_labels_and_splits_and_names_its_origins(listed: Path, done: Path) -> None:
    old, new = manifest.read(listed), manifest.read(done / MANIFEST)
    assert len(new) == len(old) == 4
    for row in range(4):
        before, after = (m.table.slice(row, 1).to_pylist()[0] for m in (old, new))
        kept = ["split", "status", "reason", "label_kind"]
        if before["status"] == "bad":
            kept += ["uri", "bytes"]
        else:
            kept += ["frames", "duration_s", "fps"]
            assert after["origin"] == before["uri"]
            assert after["uri"] == str(done / name_of(before["uri"]))
            assert after["bytes"] == Path(after["uri"]).stat().st_size
            assert (after["codec"], after["seek"], after["damaged"], after["start_pts"]) == ("h264", "planned", 0, 0)
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_only_what_is_lacking_is_made(footage: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, out = folder_of(footage, tmp_path / "videos"), tmp_path / "out"
    assert transcode(videos, out) == 0
    said = capsys.readouterr().out
    assert "3 videos made anew, 0 of all settled earlier; 0 failed, 1 were bad before" in said
    assert "speed-up: " in said
    assert f"data.videos={out / MANIFEST}" in said

    first = made_in(out)
    lost, changed = (name_of(str(videos / name)) for name in NAMES[:2])
    (out / lost).unlink()
    (videos / NAMES[1]).unlink()
    make_video(videos / NAMES[1], frames=30)
    (out / f".half{UNFINISHED}").touch()
    with (out / RECORD).open("a") as record:
        record.write('{"uri": "/a/line/that/was')  # its writer was killed
    assert transcode(videos, out) == 0
    after = made_in(out)
    assert {name for name in first if after[name] != first[name]} == {lost, changed}
    assert all(json.loads(line) for line in (out / RECORD).read_text().splitlines())
    assert not list(out.glob(f".*{UNFINISHED}"))


def test_a_video_that_kills_the_encoder_is_a_bad_row_and_is_tried_again(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYJEPA_POISON", json.dumps({"Blüte": "segv"}))
    assert transcode(listed, tmp_path) == 0
    bad = [row for row in manifest.read(tmp_path / MANIFEST).table.to_pylist() if row["status"] == "bad"]
    reasons = {Path(row["uri"]).name: row["reason"] for row in bad}
    assert reasons["späte Blüte 2.mp4"] == "not transcoded: SIGSEGV (child, crash)"
    assert len(made_in(tmp_path)) == 2
    monkeypatch.delenv("RAYJEPA_POISON")
    assert transcode(listed, tmp_path) == 0
    assert len(made_in(tmp_path)) == 3


def test_a_damaged_video_is_a_bad_row_for_good(
    footage: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "damaged", tmp_path / "out"
    source.mkdir()
    os.link(footage[0], source / "good.mp4")
    spoilt = bytearray(footage[1].read_bytes())
    first, last = spoilt.index(b"mdat") + 4, spoilt.index(b"moov") - 4
    with av.open(str(footage[1])) as file:
        key = next(file.demux(video=0)).size
    spoilt[first + key : last] = bytes(byte ^ 0x5A for byte in spoilt[first + key : last])
    (source / "spoilt.mp4").write_bytes(spoilt)
    assert transcode(source, out) == 0
    assert "1 failed" in capsys.readouterr().out
    assert transcode(source, out) == 0
    assert "2 of all settled earlier" in capsys.readouterr().out


def test_names_can_be_read_and_never_meet() -> None:
    uris = ["/a/x.mp4", "/b/x.mp4", "/a/x.avi", "/a/späte Blüte.mkv", "/a/.hidden.mp4", "/a/" + "ü" * 120 + ".mp4"]
    names = [name_of(uri) for uri in uris]
    assert len(set(names)) == len(names)
    assert [name[:-21] for name in names[:5]] == ["x", "x", "x", "späte Blüte", "hidden"]
    assert all(len(name.encode()) < 200 and name.endswith(".mp4") and name[0] != "." for name in names)


@pytest.mark.parametrize(
    "case",
    [
        ("another recipe", "", "was made by another recipe (gop 12 and not 16)"),
        ("other things", "", "holds other things than transcoded videos"),
        ("a file", "", "is not a folder"),
        ("below a file", "", "Not a directory"),
        ("", "--gop=0", "gop=0 must be in [1, 250]"),
        ("", "--x264-preset=fest", "must be one of ultrafast"),
        ("", "data.fraems=3", "unknown key data.fraems"),
    ],
)
def test_a_mistake_is_one_sentence(
    case: tuple[str, str, str], listed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (prepare, word, sentence), out = case, tmp_path / "out"
    match prepare:
        case "another recipe":
            out.mkdir()
            fields = {"short_px": 288, "gop": 12, "b_frames": 7, "crf": 23, "preset": "ultrafast", "tune": "fastdecode"}
            (out / RECIPE).write_text(json.dumps(fields))
        case "other things":
            out.mkdir()
            (out / "holiday.jpg").touch()
        case "a file":
            out.touch()
        case "below a file":
            out.touch()
            out = out / "below"
    assert transcode(listed, out, *filter(None, [word])) in (1, 2)
    text = capfd.readouterr().err
    assert sentence in text
    assert "Traceback" not in text


def test_new_videos_do_not_go_where_the_old_ones_lie(
    videos: Path, listed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert transcode(videos, videos / "new") == 2
    assert "lies in the folder of the videos" in capfd.readouterr().err
    assert transcode(listed, videos) == 2
    assert "holds the source" in capfd.readouterr().err


def test_two_commands_do_not_write_to_one_folder(listed: Path, tmp_path: Path) -> None:
    old = manifest.read(listed)
    with work_in(tmp_path / "out", old, Recipe()) as work:
        assert [job.uri for job in work.jobs] == [old.uri(int(row)) for row in old.usable.nonzero()[0]]
        with pytest.raises(RuntimeError, match="another `rayjepa transcode` writes to"):
            work_in(tmp_path / "out", old, Recipe()).__enter__()


def test_a_folder_that_takes_no_more_stops_the_work(listed: Path, tmp_path: Path) -> None:
    with work_in(tmp_path / "out", manifest.read(listed), Recipe()) as work:
        job = work.jobs[0]
        columns, unwritten = {"status": "bad"}, "No space left on device"
        full = Outcome(uri=job.uri, name=job.name, source=job.source, columns=columns, unwritten=unwritten)
        with pytest.raises(RuntimeError, match=unwritten):
            work.settle(full)
        assert work.settled == {}


def test_the_speed_up_is_of_the_same_clips(listed: Path, done: Path) -> None:
    run = resolve(None, {"data.frames": 16, "data.size_px": 64})
    pairs = gain.sample(run, manifest.read(listed), manifest.read(done / MANIFEST), clips=24)
    assert len(pairs) == 24
    for before, after in pairs:
        assert after.uri == str(done / name_of(before.uri))
        assert (before.start_s, before.window, before.flip) == (after.start_s, after.window, after.flip)
    found = gain.measure(run, pairs)
    assert found is not None
    assert found.clips == 24
    assert found.ratio > 0


def test_nothing_is_measured_where_nothing_was_made(listed: Path) -> None:
    old = manifest.read(listed)
    status = old.table.schema.get_field_index("status")
    bad = Manifest(old.table.set_column(status, "status", [["bad"] * len(old)]))
    assert gain.sample(resolve(None, {}), old, bad, clips=4) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_work_goes_on_after_a_kill(number: signal.Signals, footage: list[Path], tmp_path: Path) -> None:
    source, out = tmp_path / "many", tmp_path / "out"
    source.mkdir()
    for k in range(60):
        os.link(footage[k % 3], source / f"{k:02}.mp4")
    command = [sys.executable, "-m", "rayjepa.cli", "transcode", str(source), "--out", str(out), "--clips", "1", *HERE]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background is born deaf to it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        until = time.monotonic() + 60
        while not made_in(out) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    first = made_in(out)
    assert 0 < len(first) < 60, "the command was not in the middle of its work"
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "go on with the same command" in said
        assert "Traceback" not in said
        assert not list(out.glob(f".*{UNFINISHED}"))
    recorded = len((out / RECORD).read_text().splitlines())
    assert main(command[3:]) == 0
    after = made_in(out)
    assert len(after) == 60
    assert sum(after[name] == first[name] for name in first) >= recorded
    assert not list(out.glob(f".*{UNFINISHED}"))


@pytest.mark.slow
def test_a_full_disk_ends_the_command_with_one_sentence(listed: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    script = f'mount -t tmpfs -o size=24k none "{mount}" && exec "$0" -m rayjepa.cli "$@"'
    words = ["transcode", str(listed), "--out", str(mount / "out"), *QUICK, *HERE]
    allowed = subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode == 0
    if not allowed:
        pytest.skip("this user may not mount a small disk")
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, sys.executable, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"rayjepa: cannot write videos to {mount / 'out'}: No space left")
    assert "Traceback" not in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_makes_the_same_files_and_outlives_bad_ones(
    listed: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYJEPA_POISON", json.dumps({"Blüte": "segv"}))
    words = ["transcode", str(listed), "--out", str(tmp_path), *QUICK, "data.retries=0"]
    assert main([*words, "cluster.decoders=2", "cluster.object_store_gib=0.1"]) == 0
    assert len(made_in(tmp_path)) == 2
    assert all((tmp_path / name).read_bytes() == (done / name).read_bytes() for name in made_in(tmp_path))
    reasons = manifest.read(tmp_path / MANIFEST).column("reason").drop_null().to_pylist()
    assert sum("SIGSEGV" in reason for reason in reasons) == 1

"""Whatever a video does to FFmpeg, the decoder gives a clip for every sample, or says why it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from footage import bad_video, make_video

from rayjepa.config import DataConfig
from rayjepa.data.clip import ClipSpec, Failure, Window
from rayjepa.data.decode import decode_clip
from rayjepa.data.decoder import Decoder
from rayjepa.data.video import Probe

REAL = Path(__file__).parents[2] / "shared" / "videos"
CONFIG = DataConfig(frames=4, size_px=64, retries=1, substitutes=3)
SHORT = {"spin": replace(CONFIG, decode_cpu_s=0.4), "hang": replace(CONFIG, decode_cpu_s=2.0, decode_wall_s=2.0)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [str(make_video(folder / f"{k}.mp4", frames=24 + k)) for k in range(4)]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    return lambda faults: monkeypatch.setenv("RAYJEPA_POISON", json.dumps(faults))


def spec_for(uri: str, index: int = 0, attempt: int = 0, *, size_px: int = 64, frames: int = 4) -> ClipSpec:
    return ClipSpec(
        index=index, attempt=attempt, stream="test", video=index, uri=uri, start_s=0.1, frames=frames, fps=8.0,
        window=Window(size_px=size_px, scale=(0.3, 1.0), aspect=(0.75, 1.35), seed=index),
        pixels="i420", flip=False, mask_seed=0, view_seed=0,
    )  # fmt: skip


def in_process(spec: ClipSpec) -> np.ndarray:
    out = bytearray(spec.nbytes)
    decode_clip(spec.uri, spec, out)
    return np.frombuffer(out, np.uint8)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_clips_of_the_child_equal_those_of_this_process(videos: list[str]) -> None:
    specs = [spec_for(uri, index) for index, uri in enumerate(videos * 3)]
    with Decoder(CONFIG) as decoder:
        result = decoder.clips(specs, lambda index, attempt: specs[0])
    assert result.specs == tuple(specs)
    assert result.failures == ()
    assert np.array_equal(result.pixels, np.stack([in_process(spec) for spec in specs]))
    assert result.frames >= 4 * len(specs)
    assert result.cpu_s > 0


def test_a_restarted_child_gives_the_same_bytes(videos: list[str]) -> None:
    specs = [spec_for(uri, index) for index, uri in enumerate(videos)]
    with Decoder(CONFIG) as decoder:
        before = decoder.clips(specs, lambda index, attempt: specs[0])
        os.kill(decoder.child_pid, signal.SIGKILL)
        after = decoder.clips(specs, lambda index, attempt: specs[0])
        assert decoder.restarts == 1
    assert np.array_equal(before.pixels, after.pixels)
    assert after.failures == ()


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("segv", "crash", "SIGSEGV"),
        ("exit", "crash", "exit 3"),
        ("memory", "crash", "memory limit (data.decode_memory_gib)"),
        ("spin", "deadline", "cpu deadline 0.4 s (data.decode_cpu_s)"),
        ("hang", "deadline", "wall deadline 2 s (data.decode_wall_s)"),
    ],
)
def test_a_clip_that_ends_the_child_is_replaced_by_its_substitute(
    videos: list[str], poison: Callable[[dict[str, str]], None], fault: str, kind: str, reason: str
) -> None:
    poison({"/1.mp4": fault})
    cfg = replace(SHORT.get(fault, CONFIG), retries=0)
    specs = [spec_for(uri, index) for index, uri in enumerate(videos)]
    started = time.monotonic()
    with Decoder(cfg) as decoder:
        result = decoder.clips(specs, lambda index, attempt: spec_for(videos[3], index, attempt))
        assert decoder.restarts == 1
        pid = decoder.child_pid
    assert time.monotonic() - started < 60  # it takes 2 s; a machine may be loaded
    assert not is_running(pid)
    assert [spec.uri for spec in result.specs] == [videos[0], videos[3], videos[2], videos[3]]
    assert [spec.attempt for spec in result.specs] == [0, 1, 0, 0]
    assert result.failures == (
        Failure(index=1, attempt=0, video=1, uri=videos[1], stage="child", kind=kind, reason=reason),
    )
    assert np.array_equal(result.pixels, np.stack([in_process(spec) for spec in result.specs]))


def test_a_crash_is_retried_in_a_fresh_child_before_it_is_given_up(
    videos: list[str], poison: Callable[[dict[str, str]], None]
) -> None:
    poison({"/0.mp4": "segv"})
    with Decoder(CONFIG) as decoder:
        result = decoder.clips([spec_for(videos[0])], lambda index, attempt: spec_for(videos[1], index, attempt))
        assert decoder.restarts == 1 + CONFIG.retries
    assert len(result.failures) == 1


def test_bad_files_are_ordinary_failures_and_the_child_lives_on(videos: list[str], tmp_path: Path) -> None:
    kinds = ["zero byte", "text", "truncated", "flipped", "audio only"]
    specs = [spec_for(str(bad_video(tmp_path, kind, Path(videos[0]))), k) for k, kind in enumerate(kinds)]
    with Decoder(CONFIG) as decoder:
        pid = decoder.child_pid
        result = decoder.clips(specs, lambda index, attempt: spec_for(videos[1], index, attempt))
        assert decoder.child_pid == pid
    assert [(f.index, f.kind) for f in result.failures] == [(k, "content") for k in range(len(kinds))]
    assert all(spec.uri == videos[1] for spec in result.specs)


def test_a_missing_file_uses_up_its_retries_and_bad_content_does_not(
    videos: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    specs = [spec_for(str(tmp_path / "gone.mp4")), spec_for(str(text), 1), spec_for(videos[0], 2)]
    with Decoder(CONFIG) as decoder:
        pid = decoder.child_pid
        result = decoder.clips(specs, lambda index, attempt: spec_for(videos[1], index, attempt))
        assert decoder.child_pid == pid
    assert [(f.index, f.stage, f.kind) for f in result.failures] == [(0, "open", "io"), (1, "open", "content")]
    retried = [record.getMessage() for record in caplog.records if "next try" in record.getMessage()]
    assert len(retried) == CONFIG.retries
    assert "gone.mp4" in retried[0]


def test_when_all_substitutes_fail_the_error_names_each_of_them(videos: list[str]) -> None:
    with Decoder(replace(CONFIG, retries=0)) as decoder:
        with pytest.raises(RuntimeError, match=r"data\.substitutes=3") as error:
            decoder.clips([spec_for("/gone/0.mp4", 7)], lambda i, attempt: spec_for(f"/gone/{attempt}.mp4", i, attempt))
        assert all(f"/gone/{attempt}.mp4: No such file" in str(error.value) for attempt in range(4))
        assert "/gone/4.mp4" not in str(error.value)
        later = decoder.clips([spec_for(videos[0])], lambda index, attempt: spec_for(videos[1]))
    assert np.array_equal(later.pixels[0], in_process(spec_for(videos[0])))


def test_an_error_in_the_caller_leaves_no_answer_for_the_next_call(videos: list[str], tmp_path: Path) -> None:
    def give_up(index: int, attempt: int) -> ClipSpec:
        raise KeyError("no substitute")

    empty = tmp_path / "empty.mp4"
    empty.touch()
    specs = [spec_for(str(empty)), *(spec_for(uri, 1) for uri in videos)]
    with Decoder(CONFIG) as decoder:
        with pytest.raises(KeyError):
            decoder.clips(specs, give_up)
        result = decoder.clips([spec_for(videos[3], 3)], give_up)
    assert np.array_equal(result.pixels[0], in_process(spec_for(videos[3], 3)))


def test_a_probe_says_what_is_in_a_file_or_why_nothing_is(videos: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with Decoder(replace(CONFIG, retries=0)) as decoder:
        pid = decoder.child_pid
        good, bad, gone = (decoder.probe(path) for path in (videos[0], str(empty), "/gone.mp4"))
        assert decoder.child_pid == pid
    assert isinstance(good, Probe)
    assert (good.frames, good.width, good.height, good.codec) == (24, 128, 80, "h264")
    common = {"index": -1, "attempt": 0, "video": -1, "stage": "open"}
    assert bad == Failure(**common, uri=str(empty), kind="content", reason="empty file")
    assert gone == Failure(**common, uri="/gone.mp4", kind="io", reason="No such file or directory")


def test_a_full_decode_counts_what_is_damaged_and_says_whether_seeks_are_exact(
    videos: list[str], tmp_path: Path
) -> None:
    with Decoder(CONFIG) as decoder:
        good, probed = decoder.verify(videos[0]), decoder.probe(videos[0])
        bad = decoder.verify(str(bad_video(tmp_path, "flipped", Path(videos[0]))))
        assert decoder.restarts == 0
    assert isinstance(good, Probe)
    assert isinstance(probed, Probe)
    assert (probed.seek, probed.damaged) == ("planned", None)
    assert good == replace(probed, damaged=0)
    assert isinstance(bad, Failure)
    assert bad.kind == "content"


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_file_gib": 2**-20}, "data.max_file_gib=9.53674e-07"),
        ({"max_frame_px": 10_000}, "a frame of 128 x 80 pixels is above data.max_frame_px=10000"),
        ({"max_video_h": 1e-4}, "data.max_video_h=0.0001"),
        ({"max_packets": 3}, "data.max_packets=3"),
    ],
)
def test_each_limit_is_kept_and_named(videos: list[str], limit: dict[str, float], reason: str) -> None:
    with Decoder(replace(CONFIG, **limit)) as decoder:
        with pytest.raises(RuntimeError) as error:
            decoder.clips([spec_for(videos[0])], lambda index, attempt: spec_for(videos[0], index, attempt))
        assert decoder.restarts == 0
    assert reason in str(error.value)


def test_the_child_has_given_up_what_it_does_not_need(videos: list[str]) -> None:
    with Decoder(CONFIG) as decoder:
        decoder.probe(videos[0])
        status = Path(f"/proc/{decoder.child_pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


def test_the_child_dies_with_its_owner(videos: list[str]) -> None:
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from rayjepa.config import DataConfig
from rayjepa.data.decoder import Decoder
decoder = Decoder(DataConfig(frames=4, size_px=64))
decoder.probe({videos[0]!r})
print(decoder.child_pid, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_running(pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + 1
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(pid)


def test_specs_that_do_not_fit_the_decoder_are_refused(videos: list[str]) -> None:
    with Decoder(CONFIG) as decoder:
        with pytest.raises(ValueError, match="they must be equal"):
            decoder.clips([spec_for(videos[0]), spec_for(videos[0], frames=3)], lambda i, a: spec_for(videos[0]))
        with pytest.raises(ValueError, match=r"data\.size_px=64"):
            decoder.clips([spec_for(videos[0], size_px=128)], lambda i, a: spec_for(videos[0]))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real videos in {REAL}")
def test_all_real_clips_decode() -> None:
    specs = [spec_for(str(path), index) for index, path in enumerate(sorted(REAL.iterdir()))]
    assert len(specs) == 8
    with Decoder(CONFIG) as decoder:
        result = decoder.clips(specs, lambda index, attempt: specs[0])
    assert result.failures == ()
    assert result.missing == 0
    assert all(row.std() > 10 for row in result.pixels)

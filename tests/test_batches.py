"""Clips of a batch come straight from the child, and are right whatever becomes of it."""

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from footage import make_video
from test_decoder import CONFIG, in_process, spec_for

from rayjepa.data.clip import Failure
from rayjepa.data.decoder import Decoder
from rayjepa.data.errands import Errands
from rayjepa.data.memory import Memory, Pool, paged
from rayjepa.data.request import (
    DECODED_PIXELS,
    LINEAR_S,
    MESSAGE_CLIPS,
    MOST_CLIPS,
    Request,
    decoding,
    encoding,
    grouped,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [str(make_video(folder / f"{k}.mp4", frames=24 + k)) for k in range(3)]


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_wild_write_ends_the_child_instead_of_reaching_a_batch(has_keys: bool) -> None:
    page = mmap.PAGESIZE
    memory = Memory(3 * page)
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from rayjepa.data.mapping import Batch
other, batch = (Batch({memory.fd}, has_keys={has_keys}) for _ in range(2))
rows = batch.open({page}, {page})
rows[:] = b"x" * {page}
if sys.argv[1] == "other":
    other.mapped[0] = 1
batch.shut({page}, {page})
print(batch.mapped[{page}], flush=True)
batch.mapped[int(sys.argv[1])] = 1
"""
    for at, said in (("other", ""), ("0", "120\n"), (f"{page}", "120\n"), (f"{2 * page}", "120\n")):
        command = [sys.executable, "-c", program, at]
        done = subprocess.run(command, pass_fds=[memory.fd], capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == (said, -signal.SIGSEGV)
    assert memory.mapped[:] == bytes(page) + b"x" * page + bytes(page)


def test_what_a_child_had_decoded_of_a_batch_before_it_died_is_decoded_again(
    videos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYJEPA_POISON", json.dumps({"/2.mp4": "exit"}))
    specs = [spec_for(videos[k % 2], k) for k in range(MESSAGE_CLIPS)] + [spec_for(videos[2], MESSAGE_CLIPS)]
    memory = Memory(len(specs) * specs[0].nbytes)
    errands = Errands(replace(CONFIG, retries=0))
    rows: list[int] = []
    for request, result in errands.results(grouped(specs, memory, specs[0].nbytes)):
        if request.row == MESSAGE_CLIPS:
            assert isinstance(result, Failure)
            memory.mapped[:] = bytes(len(memory.mapped))  # as if the child had run wild
        rows.append(request.row)
    errands.close()
    assert rows == [*range(MESSAGE_CLIPS), MESSAGE_CLIPS, *range(MESSAGE_CLIPS)]
    served = np.frombuffer(memory.mapped, np.uint8).reshape(len(specs), -1)[:-1]
    assert np.array_equal(served, np.stack([in_process(spec) for spec in specs[:-1]]))


def test_a_child_that_dies_between_requests_is_not_believed_either(videos: list[str], tmp_path: Path) -> None:
    specs = [spec_for(videos[0]), spec_for(str(tmp_path / "gone.mp4"), 1)]
    memory = Memory(2 * specs[0].nbytes)
    errands = Errands(replace(CONFIG, retries=2))
    errands.started()
    rows: list[int] = []
    for request, _ in errands.results(grouped(specs, memory, specs[0].nbytes)):
        if not rows:
            os.kill(errands.child().pid, signal.SIGKILL)  # the second clip waits for its next try
            time.sleep(0.05)
        rows.append(request.row)
    errands.close()
    assert rows == [0, 0, 1]


def test_memory_is_used_again_only_when_nothing_shows_its_array() -> None:
    pool = Pool()
    array, first = pool.take(2, 100)
    array[:] = 7
    kept = [torch.from_numpy(array)[1][3:5], memoryview(array)[:1], array[0, :1].view()]
    del array
    while kept:
        other, second = pool.take(2, 100)
        assert second is not first
        other[:] = 0
        del other
        assert all(np.all(np.asarray(view) == 7) for view in kept)
        kept.pop()
    assert {pool.take(2, 100)[1].number, pool.take(2, 100)[1].number} >= {first.number}
    _, larger = pool.take(2, 1 << 20)
    assert larger is not first


def test_clips_that_are_held_stay_while_others_are_decoded(videos: list[str]) -> None:
    with Decoder(CONFIG) as decoder:
        held = [decoder.clips([spec_for(uri, k)], lambda i, a: spec_for("gone")) for k, uri in enumerate(videos * 3)]
        once = decoder.clips([spec_for(videos[0])], lambda i, a: spec_for(videos[0])).pixels[0, :100].copy()
        pid = decoder.child_pid
        maps = Path(f"/proc/{pid}/maps").read_text().count("memfd:clips")
    assert maps <= 3  # two batches, and the byte that says which request is in hand
    assert np.array_equal(once, in_process(spec_for(videos[0]))[:100])
    for k, result in enumerate(held):
        assert np.array_equal(result.pixels[0], in_process(spec_for(videos[k % 3], k)))


@pytest.mark.parametrize("size_px", [64, 50])
def test_a_batch_is_one_block_of_memory_whatever_the_size_of_a_clip(videos: list[str], size_px: int) -> None:
    specs = [spec_for(uri, k, size_px=size_px, frames=3) for k, uri in enumerate(videos)]
    assert (specs[0].nbytes == paged(specs[0].nbytes)) == (size_px == 64 and specs[0].nbytes % mmap.PAGESIZE == 0)
    with Decoder(CONFIG) as decoder:
        pixels = decoder.clips(specs, lambda i, a: specs[0]).pixels
    assert pixels.shape == (3, specs[0].nbytes)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.stack([in_process(spec) for spec in specs]))


def test_a_batch_beyond_the_childs_room_gets_a_child_with_more(videos: list[str]) -> None:
    cfg = replace(CONFIG, frames=24, size_px=2048, decode_memory_gib=0.5)
    specs = [spec_for(videos[0], size_px=2048, frames=24)]
    with Decoder(cfg) as decoder:
        small = decoder.clips([spec_for(videos[0])], lambda i, a: specs[0])
        large = decoder.clips(specs, lambda i, a: specs[0])
        assert decoder.restarts == 0
    assert small.failures == large.failures == ()
    assert large.pixels[0, -1] > 0


def test_adjacent_clips_of_one_video_are_one_request(videos: list[str]) -> None:
    uris = [*"aab", *"c" * (MOST_CLIPS + 1), "a"]
    requests = list(grouped([spec_for(uri, k) for k, uri in enumerate(uris)], Memory(mmap.PAGESIZE), 1))
    assert [(r.uri, r.row, len(r.specs)) for r in requests] == [
        ("a", 0, 2),
        ("b", 2, 1),
        ("c", 3, MOST_CLIPS),
        ("c", 3 + MOST_CLIPS, 1),
        ("a", 4 + MOST_CLIPS, 1),
    ]
    assert [(clip.row, clip.specs) for clip in requests[0].clips()] == [
        (0, requests[0].specs[:1]),
        (1, requests[0].specs[1:]),
    ]


def test_clips_of_one_video_equal_those_decoded_alone(videos: list[str]) -> None:
    specs = [spec_for(videos[k // 3], k) for k in range(9)]
    with Decoder(CONFIG) as decoder:
        result = decoder.clips(specs, lambda i, a: specs[0])
    assert result.specs == tuple(specs)
    assert np.array_equal(result.pixels, np.stack([in_process(spec) for spec in specs]))


def test_when_a_request_of_several_clips_kills_the_child_each_is_tried_alone(
    videos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYJEPA_POISON", json.dumps({"/1.mp4": "segv"}))
    specs = [spec_for(videos[k], i) for i, k in enumerate([0, 1, 1, 2])]
    with Decoder(replace(CONFIG, retries=1)) as decoder:
        result = decoder.clips(specs, lambda index, attempt: spec_for(videos[2], index, attempt))
        assert decoder.restarts == 1 + 2 * 2  # the pair, then each of its clips in both of its tries
    assert [(failure.index, failure.reason) for failure in result.failures] == [(1, "SIGSEGV"), (2, "SIGSEGV")]
    assert np.array_equal(result.pixels, np.stack([in_process(spec) for spec in result.specs]))


def test_each_clip_of_a_request_has_its_own_deadline_and_a_linear_one_has_more() -> None:
    spec = spec_for("a")
    planned = Request(do="clips", uri="a", specs=(spec, spec))
    late = replace(spec, seek="linear", start_s=3600.0)
    assert planned.deadlines(1 << 40) == 2
    assert Request(do="clips", uri="a", specs=(late,)).deadlines(0) == pytest.approx(1 + 3600.5 / LINEAR_S)


def test_deadlines_of_whole_files_lie_far_above_what_honest_ones_take() -> None:
    # One hour at 30 frames per second; CPU per pixel as measured for H.264, HEVC and VP9: 3.3 to 4.4 ns.
    frames, pixels = 108_000, 1920 * 1080
    allowed_s = 20.0 * decoding(frames, pixels, 0)
    assert 5 < allowed_s / (frames * pixels * 4.4e-9) < 10
    assert decoding(10, int(DECODED_PIXELS / 10), 0) == pytest.approx(1.001)
    assert encoding(10, 640, 360, 288) == pytest.approx(encoding(10, 360, 640, 288)) == 10 * 512 * 288 / 20e6
    assert encoding(10, 64, 48, 288) == 10 * 64 * 48 / 20e6

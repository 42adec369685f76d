"""Remote videos kept on the node's disk: found again by all of its processes, whole or not at all, within a limit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from footage import make_video
from storage import Storage, fixture_plain_storage
from test_decoder import CONFIG, spec_for
from test_reads import REMOTE, never, put

from rayjepa.config import DataConfig
from rayjepa.data.decoder import Decoder
from rayjepa.data.storage import node_cache
from rayjepa.data.storage.node_cache import NodeCache

__all__ = ["fixture_plain_storage"]


def cached(tmp_path: Path, **more: object) -> DataConfig:
    return replace(REMOTE, node_cache_gib=1.0, scratch=str(tmp_path / "scratch"), **more)


def test_what_one_process_has_read_whole_the_next_finds_on_the_disk(plain_storage: Storage, tmp_path: Path) -> None:
    videos = [make_video(tmp_path / f"{k}.mp4", frames=24 + k) for k in range(3)]
    specs = put(plain_storage, videos)
    with Decoder(CONFIG) as decoder:
        local = decoder.clips([spec_for(str(path), k) for k, path in enumerate(videos)], never)
    with Decoder(cached(tmp_path)) as decoder:
        decoder.clips(specs, never)
    plain_storage.requests.clear()
    with Decoder(cached(tmp_path)) as decoder:
        made = decoder.clips(specs, never)
    assert np.array_equal(made.pixels, local.pixels)
    assert (made.requests, plain_storage.requests) == (0, [])
    for path in (tmp_path / "scratch" / "videos").iterdir():  # torn
        os.truncate(path, path.stat().st_size // 2)
    with Decoder(cached(tmp_path)) as decoder:
        assert np.array_equal(decoder.clips(specs, never).pixels, local.pixels)


def test_the_cache_keeps_to_its_limit_and_lets_go_what_was_used_least_recently(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "videos", 1000)
    for k in range(9):
        cache.put(f"video {k}", bytes([k]) * 100)
        age(tmp_path / "videos")
    held = cache.open("video 0", 100)
    assert held is not None
    for k in range(9, 12):
        cache.put(f"video {k}", bytes([k]) * 100)
    assert sum(path.stat().st_size for path in (tmp_path / "videos").iterdir()) <= 1000
    again = cache.open("video 0", 100)
    assert again is not None
    assert os.pread(again, 100, 0) == bytes(100)
    assert cache.open("video 1", 100) is None
    assert cache.open("video 11", 101) is None  # of another size
    cache.put("larger than all", bytes(1001))
    assert cache.open("larger than all", 1001) is None
    os.close(held)
    os.close(again)


def age(folder: Path) -> None:
    for path in folder.iterdir():
        status = path.stat()
        os.utime(path, (status.st_atime - 10, status.st_mtime - 10))


def test_files_that_nobody_finishes_go_in_time(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 1000)
    (tmp_path / ".torn").write_bytes(bytes(10))
    (tmp_path / ".fresh").write_bytes(bytes(10))
    os.utime(tmp_path / ".torn", (1, 1))
    cache.put("video", bytes(10))
    assert not (tmp_path / ".torn").exists()
    assert (tmp_path / ".fresh").exists()


def test_a_disk_that_takes_no_more_is_a_warning_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_cache._warn.cache_clear()
    cache = NodeCache(tmp_path / "videos", 1000)
    (tmp_path / "videos").rmdir()
    for k in range(3):
        cache.put(str(k), bytes(10))
        assert cache.open(str(k), 10) is None
    assert [record.message.split(":")[0] for record in caplog.records] == [f"videos are not kept in {tmp_path}/videos"]


@pytest.mark.slow
def test_processes_that_share_a_cache_never_see_a_part_of_a_video_or_another(tmp_path: Path) -> None:
    program = f"""
import os, random, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from rayjepa.data.storage.node_cache import NodeCache
cache, draw, served = NodeCache(Path({str(tmp_path)!r}), 2_000_000), random.Random(os.getpid()), 0
for _ in range(1500):
    name = draw.randrange(60)
    content = bytes([name]) * (50_000 + name)
    fd = cache.open(str(name), len(content))
    if fd is None:
        cache.put(str(name), content)
        continue
    assert os.pread(fd, 1 << 20, 0) == content
    os.close(fd)
    served += 1
print(served)
"""
    command = [sys.executable, "-c", program]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    served = [int(run.communicate(timeout=200)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert min(served) > 100
    kept = [path.stat().st_size for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sum(kept) < 2_200_000  # each process looks once it has written a 64th more
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".lock"]

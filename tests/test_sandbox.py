"""What the decoder's child may do, what it may not, and what is left of it."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from footage import make_video
from test_decoder import CONFIG, spec_for

from rayjepa.data.clip import Limits
from rayjepa.data.decoder import Decoder
from rayjepa.data.harden import GUARDED, MACHINES, REFUSED, numbers
from rayjepa.data.recipe import Recipe
from rayjepa.data.sandbox import ChildDied, Sandbox, refuse_old

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}

ATTEMPTS = """
import os, resource, socket, sys
sys.path[:0] = {path!r}
from rayjepa.data.errands import Errands
from rayjepa.data.harden import harden
os.chdir({folder!r})
video = os.open("video", os.O_RDONLY)
print("seccomp" in harden())
core = resource.RLIMIT_CORE
def is_refused(attempt):
    try:
        attempt()
    except (PermissionError, ValueError):  # the latter where limits may not be set
        return True
    return False
print([name for name, attempt in dict(
    read=lambda: os.open("video", os.O_RDONLY),
    write=lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
    remove=lambda: os.unlink("video"),
    rename=lambda: os.rename("video", "other"),
    folder=lambda: os.mkdir("folder"),
    link=lambda: os.symlink("video", "link"),
    cut=lambda: os.truncate("video", 0),
    rights=lambda: os.chmod("video", 0o600),
    rights_of_open_file=lambda: os.fchmod(video, 0o600),
    times=lambda: os.utime("video"),
    connect=lambda: socket.socket(),
    signal=lambda: os.kill(os.getppid(), 0),
    own_limits=lambda: resource.setrlimit(core, (0, 0)),
    limits_of_owner=lambda: resource.prlimit(os.getppid(), core, resource.prlimit(os.getppid(), core)),
    execute=lambda: os.execv(sys.executable, [sys.executable]),
).items() if not is_refused(attempt)])
os.kill(os.getpid(), 0)
resource.getrlimit(core)
"""


def open_files(pid: int | str) -> list[str]:
    try:
        return sorted(os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd") if int(entry.name) > 2)
    except FileNotFoundError:  # the descriptor of the listing itself
        return open_files(pid)
    except PermissionError:
        pytest.skip("only root may list what a process that cannot be dumped has open")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [str(make_video(folder / f"{k}.mp4", frames=24 + k)) for k in range(3)]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_of_calls_are_the_kernels(machine: str) -> None:
    header = HEADERS[machine]
    if not header.is_file():
        pytest.skip(f"no {header}")
    published = {
        name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", header.read_text())
    }
    column = MACHINES[machine][0]
    ours = numbers(REFUSED, column) | numbers(GUARDED, column)
    newer = {"fchmodat2"}  # not in every header
    assert {name: published[name] for name in ours.keys() - newer} == {n: ours[n] for n in ours.keys() - newer}
    absent = numbers(REFUSED, 1 - column).keys() - ours.keys()
    assert not absent & published.keys()


def test_a_hardened_process_can_neither_open_nor_change_nor_reach_anything(tmp_path: Path) -> None:
    (tmp_path / "video").write_bytes(b"video")
    program = ATTEMPTS.format(path=sys.path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n[]\n", "", 0)


def test_an_open_file_grows_to_a_bound_and_no_further(tmp_path: Path) -> None:
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from rayjepa.data.errands import Errands
from rayjepa.data.harden import harden
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
assert "file writes up to 9 bytes" in harden(9)
print(os.write(file, b"12345678"), os.write(file, b"12345678"))
os.write(file, b"1")
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "8 1\n"
    assert "File too large" in done.stderr


def test_where_no_filter_is_possible_clips_decode_all_the_same_after_a_warning(videos: list[str]) -> None:
    program = f"""
import ctypes, logging, sys
sys.path[:0] = {sys.path!r}
assert ctypes.CDLL(None).personality(8) != -1  # PER_LINUX32: uname names a machine that has no table
from rayjepa.config import DataConfig
from rayjepa.data.decoder import Decoder
logging.basicConfig(stream=sys.stdout)
with Decoder(DataConfig(frames=4, size_px=64)) as decoder:
    print(decoder.probe({videos[0]!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "runs without seccomp on this machine (in effect: no file writes, not dumpable" in done.stdout
    assert "Probe(container='mov" in done.stdout


def test_an_old_ffmpeg_is_refused_with_the_remedy() -> None:
    refuse_old({"PyAV": "14.0.0", "libavcodec": "61.3.100"})
    with pytest.raises(RuntimeError, match=r"libavcodec 60\.31\.102, older than 61 .* pip install --upgrade av"):
        refuse_old({"PyAV": "12.0.0", "libavcodec": "60.31.102"})


def test_the_child_says_what_it_decodes_with() -> None:
    with Decoder(CONFIG) as decoder:
        versions = decoder.versions
    assert set(versions) == {"PyAV", "libavcodec"}
    assert int(versions["libavcodec"].split(".")[0]) >= 61


def test_hundreds_of_requests_leave_no_descriptor_behind(videos: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    specs = [spec_for(videos[0], frames=1), spec_for(str(empty), 1, frames=1)]

    def some(count: int) -> None:
        for _ in range(count):
            decoder.clips(specs, lambda index, attempt: spec_for(videos[1], index, attempt, frames=1))
            decoder.probe(videos[2])

    with Decoder(CONFIG) as decoder:
        some(3)
        before = open_files("self"), open_files(decoder.child_pid)
        some(75)
        assert (open_files("self"), open_files(decoder.child_pid)) == before
        assert all(name.startswith(("/memfd:clips", "socket:", "pipe:")) for name in before[1])


def test_a_dead_child_leaves_neither_descriptors_nor_shared_memory(videos: list[str]) -> None:
    before, shared = open_files("self"), set(os.listdir("/dev/shm"))
    for _ in range(2):
        with Decoder(CONFIG) as decoder:
            for _ in range(2):
                decoder.clips([spec_for(videos[0])], lambda index, attempt: spec_for(videos[1]))
                os.kill(decoder.child_pid, signal.SIGKILL)
            assert not [name for name in set(os.listdir("/dev/shm")) - shared if "clips" in name]
    del decoder
    assert [name for name in open_files("self") if name not in before] == []


def test_the_child_starts_while_its_owner_goes_on() -> None:
    started = time.thread_time()
    with Decoder(CONFIG) as decoder:
        assert time.thread_time() - started < 0.1  # it takes 5 ms, and the child 160
        status = Path(f"/proc/{decoder.child_pid}/status").read_text()
        assert decoder.versions
        ready = Path(f"/proc/{decoder.child_pid}/status").read_text()
    assert "Seccomp:\t0" in status
    assert "Seccomp:\t2" in ready
    assert "Threads:\t1\n" in ready  # the filter holds for the thread that asked for it


def test_a_child_that_does_not_start_says_so_and_is_tried_again_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    child = Sandbox(memory_bytes=1 << 20, limits=Limits())  # too little to begin with
    with pytest.raises(ChildDied) as death:
        child.start()
    assert not death.value.started
    assert death.value.kind == "crash"


def test_a_transcoding_child_writes_to_the_file_it_is_handed_and_to_no_other(videos: list[str], tmp_path: Path) -> None:
    path = tmp_path / "made.mp4"
    with Decoder(CONFIG) as decoder, path.open("w+b") as out:
        made = decoder.transcode(videos[0], out.fileno(), Recipe(short_px=48, preset="ultrafast"))
        pid = decoder.child_pid
        limit = re.search(r"Max file size +(\d+)", Path(f"/proc/{pid}/limits").read_text())
        probe = decoder.probe(str(path))
        clip = decoder.clips([spec_for(str(path))], lambda i, a: spec_for(videos[0]))
        assert decoder.child_pid == pid
        assert decoder.restarts == 0
    assert isinstance(made, dict)
    assert made["frames"] == probe.frames == 24  # type: ignore[union-attr]
    assert made["bytes"] == path.stat().st_size
    assert limit is not None
    assert int(limit[1]) == 64 << 30
    assert clip.failures == ()


def test_two_sockets_of_the_child_are_its_only_ones() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Decoder(CONFIG) as decoder:
        decoder.versions  # noqa: B018
        assert sum(name.startswith("socket:") for name in open_files(decoder.child_pid)) == 2


def test_a_mistake_of_ours_in_the_child_is_told_to_its_owner(
    videos: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = Sandbox(memory_bytes=2 << 30, limits=Limits(), writes=False)
    file = os.open(videos[0], os.O_RDONLY)
    try:
        sandbox.start()
        sandbox.send([{"do": "nonsense", "poison": None, "paged": None, "cpu_s": 20.0, "wall_s": 120.0}], [file])
        with pytest.raises(ChildDied, match="exit 1"):
            sandbox.receive()
    finally:
        sandbox.close()
        os.close(file)
    assert "unknown request 'nonsense'" in caplog.text

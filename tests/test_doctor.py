"""The doctor's checks of one machine, each under a condition that it is there for."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from rayjepa.config import resolve
from rayjepa.doctor import Check, Finding, carried_out, compute, environment, feeding, packages, room, storage, worst
from rayjepa.doctor import finding as findings
from rayjepa.doctor.ports import open_ports, rays_ports
from rayjepa.train.room import available_gib

RUN = resolve("tiny", {})


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HTTP_PROXY", "RAYJEPA_POISON", "RAY_TRAIN_V2_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def limited(kind: int, limit: int, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """What a check says in a process with a resource limit of its own, which it could not raise again."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            resource.setrlimit(kind, (limit, limit))
            said = check()
            listed = [[f.name, f.state, f.found, f.remedy] for f in (said if isinstance(said, list) else [said])]
            os.write(writing, json.dumps(listed).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.wait()
    return [Finding(*fields) for fields in json.loads(text)]


def test_a_check_that_fails_itself_is_an_error_that_names_it() -> None:
    [found] = carried_out(Check("memory", list[Finding]().pop))
    assert (found.name, found.state) == ("memory", "error")
    assert "IndexError" in found.found


def test_a_check_without_an_answer_ends_in_time() -> None:
    began = time.monotonic()
    [found] = carried_out(Check("mount", lambda: time.sleep(60), patience_s=0.05))  # pyright: ignore
    assert found.state == "error"
    assert "no answer in 0.05 s" in found.found
    assert time.monotonic() - began < 5


def test_the_worst_finding_counts() -> None:
    fine, doubtful, bad = findings.ok("a", ""), findings.warning("b", "", "do"), findings.error("c", "", "do")
    assert [worst(x) for x in ([], [fine], [fine, doubtful], [doubtful, bad, fine])] == ["ok", "ok", "warning", "error"]


def test_a_good_folder_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    for folder in (tmp_path, tmp_path / "new" / "deep"):
        assert [f.state for f in storage.usable(folder)] == ["ok"]
        assert {f.state for f in storage.space_and_speed(RUN, folder)} == {"ok"}
    assert os.listdir(tmp_path) == ["mine"]


def test_a_folder_that_cannot_be_made_or_written_says_which_step_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    [found] = storage.usable(tmp_path / "file" / "runs")
    assert found.state == "error"
    assert "cannot make a folder: Not a directory" in found.found
    [found] = limited(resource.RLIMIT_FSIZE, 8, lambda: storage.usable(tmp_path))
    assert found.state == "error"
    assert "cannot write a file: File too large" in found.found
    assert os.listdir(tmp_path) == ["file"]


def test_a_checkpoint_larger_than_the_disk_is_an_error(tmp_path: Path) -> None:
    giant = resolve("tiny", {"model.width": 2**18, "model.heads": 64, "model.depth": 2})
    found = storage.space_and_speed(giant, tmp_path)[0]
    assert (found.name, found.state) == ("space", "error")
    assert "a checkpoint takes 24577.7 GiB" in found.found


@pytest.mark.parametrize(
    ("kind", "state", "alone"),
    [("ext4", "ok", True), ("nfs4", "ok", False), ("overlay", "warning", True), ("tmpfs", "warning", True)],
)
def test_the_file_system_is_that_of_the_longest_mount(tmp_path: Path, kind: str, state: str, alone: bool) -> None:
    table = tmp_path / "mounts"
    table.write_text(f"/dev/a / xfs rw 0 0\nserver:/b {tmp_path} {kind} rw 0 0\nc {tmp_path}/elsewhere tmpfs rw 0 0\n")
    found = storage.file_system(tmp_path / "runs" / "not-yet", alone=alone, table=table)
    assert found.state == state
    assert f"{kind} at {tmp_path}" in found.found


def test_a_remote_address_is_no_folder() -> None:
    [check] = storage.storage_checks(RUN, "s3://bucket/runs", alone=True)
    [found] = carried_out(check)
    assert found.state == "error"
    assert "mount it" in found.remedy


def test_a_token_that_others_can_read_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("secret")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    sent, readable = environment.token_of_clients(alone=False)
    assert (sent.state, readable.state) == ("ok", "warning")
    assert readable.remedy == f"chmod 600 {file}"
    file.chmod(0o600)
    assert [f.state for f in environment.token_of_clients(alone=False)] == ["ok"]
    monkeypatch.delenv("RAY_AUTH_MODE")
    [unsent] = environment.token_of_clients(alone=False)
    assert (unsent.state, unsent.remedy) == ("warning", "export RAY_AUTH_MODE=token")


@pytest.mark.parametrize(
    ("mode", "alone", "state"),
    [("token", False, "error"), ("token", True, "ok"), ("disabled", True, "warning"), ("tokn", True, "error")],
)
def test_a_mode_without_a_token_is_judged_by_what_it_does(monkeypatch, mode: str, alone: bool, state: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert [f.state for f in environment.token_of_clients(alone=alone)] == [state]


@pytest.mark.parametrize(
    ("name", "value", "state", "remedy"),
    [
        ("RAYJEPA_POISON", "{}", "error", "unset RAYJEPA_POISON"),
        ("RAY_TRAIN_V2_ENABLED", "0", "error", "unset RAY_TRAIN_V2_ENABLED"),
        ("OMP_NUM_THREADS", "4096", "warning", "unset OMP_NUM_THREADS"),
        ("CUDA_VISIBLE_DEVICES", "", "error", "unset CUDA_VISIBLE_DEVICES"),
        ("http_proxy", "http://proxy:3128", "warning", "export no_proxy=localhost,10.0.0.1,127.0.0.1"),
        ("RAY_ADDRESS", "10.0.0.2:6379", "warning", "unset RAY_ADDRESS"),
    ],
)
def test_a_variable_that_hurts_is_named(monkeypatch, name: str, value: str, state: str, remedy: str) -> None:
    run = resolve("tiny", {"cluster.gpus": True, "cluster.address": "10.0.0.1:6379"})
    assert [f.state for f in environment.environment(run)] == ["ok"]
    monkeypatch.setenv(name, value)
    [found] = environment.environment(run)
    assert found.state == state
    assert remedy in found.remedy


def test_a_port_of_ray_on_all_addresses_is_found_and_judged_by_its_token(tmp_path: Path) -> None:
    script = "import socket\ns = socket.create_server(('0.0.0.0', 0))\nprint(s.getsockname()[1], flush=True)\ninput()"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "raylet").write_text(script)
    for mode, state in (("disabled", "warning"), ("token", "ok")):
        with subprocess.Popen(
            [sys.executable, "-IS", str(tmp_path / "ray" / "raylet")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"RAY_AUTH_MODE": mode},
        ) as process:
            assert process.stdout is not None
            number = int(process.stdout.readline())
            mine = [port for port in rays_ports() if port.number == number]
            process.kill()
        found = open_ports(mine)
        assert found.state == state
        assert f"raylet {number}" in found.found


def test_a_port_on_this_machine_only_is_no_finding() -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner:
        assert inner.getsockname()[1] not in [port.number for port in rays_ports()]
    assert open_ports([]).state == "ok"


def test_few_open_files_are_an_error_for_a_run_and_a_warning_for_a_head() -> None:
    said = {
        (limit, alone): limited(resource.RLIMIT_NOFILE, limit, partial(room.open_files, alone=alone))[0].state
        for limit in (256, 8192)
        for alone in (True, False)
    }
    assert said == {(256, True): "error", (256, False): "error", (8192, True): "ok", (8192, False): "warning"}


def test_too_little_memory_for_the_processes_of_the_run(tmp_path: Path) -> None:
    run = resolve("tiny", {"cluster.workers": 10**6, "train.clips": 10**6, "cluster.object_store_gib": 10**6})
    assert compute.memory(run, alone=True).state == "error"
    assert compute.memory(run, alone=False).state == "ok"
    assert compute.cores(run, alone=True)[0].state == "warning"
    assert room.shared_memory(run, alone=True, folder=tmp_path).state == "warning"
    assert room.shared_memory(run, alone=True, folder=tmp_path / "none").state == "warning"
    assert compute.memory(RUN, alone=True).state == "ok"


def test_a_containers_limits_count(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable: 67108864 kB\n")
    assert available_gib(tmp_path / "meminfo", tmp_path) == 64
    (tmp_path / "memory.max").write_text(f"{8 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2 * 2**30}\n")
    assert available_gib(tmp_path / "meminfo", tmp_path) == 6
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert compute.cpu_quota(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert compute.cpu_quota(tmp_path / "cpu.max") is None


def test_packages_that_are_missing_or_too_old_are_listed_with_what_is_there() -> None:
    wanted = ["av>=99", "no-such-package>=1", "numpy>=1", 'torch>=99; extra == "test"', "pytest[no-such]>=1"]
    amiss = list(packages.unmet(wanted))
    assert [line.split(":")[0] for line in amiss] == ["av>=99", "no-such-package>=1"]
    assert amiss[1].endswith("not installed")
    assert packages.python().state == "ok"


@pytest.mark.parametrize(
    ("version", "state"),
    [("8.1.2", "ok"), ("n8.2-12-gdeadbee", "ok"), ("8.1.1", "warning"), ("5.1.9-0+deb12u1", "warning"), ("git", "ok")],
)
def test_an_ffmpeg_with_a_known_hole_is_a_warning(version: str, state: str) -> None:
    assert feeding.ffmpeg("18.1.0", version, "62.28.102").state == state


def test_the_decoders_child_says_what_it_has_given_up(tmp_path: Path) -> None:
    ffmpeg, sandbox = feeding.decoder(RUN)
    assert (ffmpeg.state, sandbox.state) == ("ok", "ok")
    assert "seccomp" in sandbox.found
    assert feeding.sandbox(("no file writes",)).state == "warning"


def test_videos_that_are_not_there_are_named(tmp_path: Path) -> None:
    def state(source: Path | None) -> str:
        keys = {"data.videos": None if source is None else str(source), "data.cache": str(tmp_path / "cache")}
        return worst(feeding.videos(resolve("tiny", keys)))

    (tmp_path / "list.txt").write_text("here.mp4\nlost.mp4\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "here.mp4", tmp_path / "full" / "a.mkv"):
        file.touch()
    assert state(tmp_path / "list.txt") == "error"
    (tmp_path / "lost.mp4").touch()
    assert state(tmp_path / "list.txt") == "ok"
    assert state(tmp_path / "full") == "ok"
    assert {state(tmp_path / name) for name in ("empty", "nowhere", "no.parquet")} == {"error"}
    assert state(None) == "ok"
    assert not (tmp_path / "cache").exists()

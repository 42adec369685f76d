"""Jobs on a cluster of their own: sent, refused, followed, stopped and sent again."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rayjepa.config import DataConfig
from rayjepa.data import manifest, synthetic
from rayjepa.data.index import indexing
from rayjepa.train.history import coverage, read_history

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 300  # a job of two workers takes 35 s on a quiet machine with two cores
STEPS, CLIPS = 120, 4


@dataclass(frozen=True)
class Site:
    """A cluster that asks for a token, and what its jobs train on."""

    url: str
    folder: Path
    token: str
    env: dict[str, str]

    def run(self, command: list[str] | str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command, or a line in a shell, beside the files of this module."""
        place = {"cwd": self.folder, "env": {**self.env, **env}, "shell": isinstance(command, str)}
        return subprocess.run(command, **place, capture_output=True, text=True, timeout=PATIENCE_S, check=False)  # type: ignore[call-overload]

    def submit(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Send and follow a job to its end."""
        return self.run(self.command(*words), **env)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "rayjepa.cli", "submit", "--address", self.url, *words]

    def pretrain(self, name: str) -> list[str]:
        """Words of the run that is stopped and goes on."""
        run = [f"name={name}", f"out={self.folder / 'runs'}", f"data.videos={self.folder / 'videos'}"]
        return ["pretrain", "--preset", "tiny", "--or-resume", *run, f"train.steps={STEPS}"]

    def ask(self, path: str, method: str = "GET") -> dict:
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def status(self, name: str) -> str:
        return self.ask(f"/api/jobs/{name}")["status"]


def wait_for(claim: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until, what
        time.sleep(0.1)


def free_ports(count: int) -> Iterator[int]:
    """Ports outside those that Ray gives to its workers."""
    for port in range(24300, 25000):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        yield port
        count -= 1
        if not count:
            return


def pids_of(folder: Path) -> list[int]:
    """Processes that were started with this folder."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            line = (proc / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if str(folder) in line and int(proc.name) != os.getpid():
            found.append(int(proc.name))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("jobs")
    synthetic.make(folder / "videos", 24)
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    home = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))  # short: sockets live there
    ours = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_STOP_WAIT_TIME_S")
    env = {key: value for key, value in os.environ.items() if key not in ours}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else the head waits 30 s for its own raylet
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    gcs, dashboard, agent, client = free_ports(4)
    words = [
        *("ray", "start", "--head", "--block", f"--temp-dir={home}", "--num-cpus=4", "--object-store-memory=200000000"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        f"--ray-client-server-port={client}",
    ]
    with (folder / "head.txt").open("w") as out:
        head = subprocess.Popen(words, stdout=out, stderr=out, env=env, cwd=folder, start_new_session=True)
    made = Site(f"http://127.0.0.1:{dashboard}", folder, token, env)

    def is_up() -> bool:
        assert head.poll() is None, (folder / "head.txt").read_text()
        try:
            return bool(made.ask("/api/jobs/") is not None)
        except OSError:
            return False

    try:
        wait_for(is_up, "the cluster did not start")
        yield made
    finally:
        head.terminate()  # it ends its own processes in order; a signal to all leaves it waiting for the GCS
        head.wait(PATIENCE_S)
        until = time.monotonic() + 20
        while pids_of(home) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in pids_of(home):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def test_a_job_trains_from_a_preset_that_travels_and_says_where_its_results_are(site: Site) -> None:
    (site.folder / "sent").mkdir()
    (site.folder / "sent" / "mine.yaml").write_text(
        "data: {frames: 4, fps: 8.0, size_px: 32}\n"
        "model: {patch_px: 8, width: 24, depth: 1, heads: 2}\n"
        "predictor: {width: 12, depth: 1, heads: 2}\n"
        "train: {steps: 3, clips: 4, precision: fp32, engine: plain}\n"
        "cluster: {workers: 0}\n"
    )
    words = ["pretrain", "--preset", "sent/mine.yaml", f"out={site.folder / 'runs'}", "name=alone"]
    words.append(f"data.videos={site.folder / 'videos'}")
    line = site.submit("--id", "first", "--working-dir", "sent", "--print", *words).stdout
    done = site.run(line)
    run_dir = site.folder / "runs" / "alone"
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"results: {run_dir} (finished)" in done.stdout
    again = site.submit("--id", "first", "pretrain", "--preset", "tiny", f"out={site.folder / 'runs'}")
    assert again.returncode == 2
    assert "submission id first is taken: that job is SUCCEEDED" in again.stderr


def test_a_stopped_job_saves_and_sent_again_trains_every_sample_once(site: Site) -> None:
    run_dir = site.folder / "runs" / "two"

    def step() -> int:
        try:
            return json.loads((run_dir / "progress.json").read_text())["step"]
        except (OSError, ValueError):
            return 0

    follower = subprocess.Popen(
        site.command("--id", "two-a", *site.pretrain("two")),
        env=site.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: step() >= 4 or follower.poll() is not None, "the job did not train")
    follower.send_signal(signal.SIGINT)
    said, _ = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130, said
    assert "the job goes on" in said
    assert f"ray job logs two-a --follow --address {site.url}" in said
    assert site.status("two-a") == "RUNNING"

    site.ask("/api/jobs/two-a/stop", "POST")
    wait_for(lambda: site.status("two-a") != "RUNNING", "the job did not stop")
    log = site.ask("/api/jobs/two-a/logs")["logs"]
    assert site.status("two-a") == "STOPPED"
    finished = json.loads((run_dir / "outcome.json").read_text())["finished"]
    assert 4 <= finished < STEPS, log
    assert (
        log.splitlines()[-1] == f"results: {run_dir} (stopped); go on with: rayjepa submit pretrain --resume {run_dir}"
    )

    done = site.submit("--id", "two-b", *site.pretrain("two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"results: {run_dir} (finished)"
    assert coverage(run_dir, STEPS * CLIPS) == ([], [])
    table = read_history(run_dir)
    assert [attempt.start for attempt in table.attempts.values()] == [0, finished]
    assert table.of("step", undone=True) == []

    other = site.run([sys.executable, "-m", "rayjepa.cli", *site.pretrain("two"), "optim.lr=1e-5"])
    assert other.returncode == 2
    assert "has another configuration (optim.lr: 0.001 -> 1e-05)" in other.stderr


def test_a_file_of_jobs_is_the_same_job(site: Site) -> None:
    file = Path(__file__).parent.parent / "jobs" / "index.py"
    out = site.folder / "clips.parquet"
    sources = [site.folder / "videos", site.folder / "shard.tar"]
    with tarfile.open(sources[1], "w") as tar:
        for video in sorted(sources[0].rglob("*.mp4"))[:3]:
            tar.add(video, arcname=f"in it/{video.name}")
    words = f"{file} {sources[0]} shard={sources[1]} --out {out}"
    done = site.run(f"ray job submit --address {site.url} -- python {words}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"wrote {out}\nresults: {out}\n" in done.stdout
    assert "processes of the cluster look at files" in done.stdout
    assert len(manifest.read(out)) == 24 + 3
    assert manifest.read(out) == indexing.index(sources[0], f"shard={sources[1]}", cfg=DataConfig())


def test_a_job_that_fails_says_why_and_so_does_its_exit_status(site: Site) -> None:
    missing = site.folder / "no-videos"
    done = site.submit("pretrain", "--preset", "tiny", f"out={site.folder / 'runs'}", f"data.videos={missing}")
    assert done.returncode == 1
    assert f"no such source: {missing} does not exist" in done.stdout
    assert "results: none" in done.stdout
    assert "FAILED exit status 2" in done.stderr


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"RAY_AUTH_MODE": ""}, "asks for a token: export RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "RAY_AUTH_MODE=token is set and no token is found"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token: it is another cluster's"),
    ],
)
def test_a_token_that_does_not_open_the_cluster_is_told_apart(site: Site, env: dict[str, str], sentence: str) -> None:
    done = site.submit("pretrain", "--preset", "tiny", "out=/shared/runs", **env)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_too_large_is_refused_with_its_largest_entries(site: Site, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with (tmp_path / "videos" / "a.mp4").open("wb") as file:
        file.truncate(130 * 2**20)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "large").write_bytes(b"0" * 2**21)  # Ray leaves it out by itself
    (tmp_path / "mine.yaml").write_text("train: {steps: 3}")
    words = ["--working-dir", str(tmp_path), "pretrain", "--preset", "tiny", "out=/shared/runs"]
    done = site.submit(*words)
    assert done.returncode == 2
    assert "is 130 MiB to send, in 2 files; the dashboard takes 100 MiB. Largest: videos/ 130.0 MiB" in done.stderr
    (tmp_path / ".rayignore").write_text("videos/\n")
    assert "asks for a token" in site.submit(*words, RAY_AUTH_MODE="").stderr  # the next thing that it looks at


def test_a_preset_that_is_ignored_is_missed_before_the_job_misses_it(site: Site) -> None:
    folder = site.folder / "ignoring"
    folder.mkdir()
    (folder / "mine.yaml").write_text("train: {steps: 3}")
    (folder / ".gitignore").write_text("*.yaml\n")
    done = site.submit("--working-dir", "ignoring", "pretrain", "--preset", "ignoring/mine.yaml", "out=/shared/runs")
    assert done.returncode == 2
    assert "mine.yaml is not sent" in done.stderr


class OtherRay(BaseHTTPRequestHandler):
    """A dashboard of a Ray that is not ours, as far as anybody asks it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2.40.0", "ray_commit": ""}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_another_ray_on_the_cluster_is_an_error_with_both_versions(site: Site) -> None:
    with HTTPServer(("127.0.0.1", 0), OtherRay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = site.submit("--address", address, "pretrain", "--preset", "tiny", "out=/shared/runs")
        server.shutdown()
    assert done.returncode == 1
    assert "takes jobs without a token" in done.stderr
    assert "runs Ray 2.40.0 and this machine has 2.60" in done.stderr


def test_nobody_at_the_address_is_one_line_with_the_way_there(site: Site) -> None:
    (port,) = free_ports(1)
    done = site.submit("--address", f"127.0.0.1:{port}", "pretrain", "--preset", "tiny", "out=/shared/runs")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "ssh -N -L 8265:127.0.0.1:8265" in done.stderr

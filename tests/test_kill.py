"""Kill anything: the history that survives holds every sample once, and ends in the undisturbed run's weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rayjepa.data import synthetic
from rayjepa.train.history import coverage, read_history
from rayjepa.train.restart import is_complete, restart_point

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, CLIPS = 90, 8
PATIENCE_S = 400  # a run takes 25 to 40 s on a quiet machine with two cores
OPTIONS = [
    f"train.steps={STEPS}",
    f"train.clips={CLIPS}",
    "model.depth=6",
    "model.width=48",
    "checkpoint.every_steps=30",
    "health.every_steps=45",
]


@dataclass(frozen=True)
class Site:
    """Where the runs of this module are, and what they train on."""

    out: Path
    videos: Path

    def start(self, *words: str) -> subprocess.Popen:
        env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
        command = [sys.executable, "-m", "rayjepa.cli", "pretrain", *words]
        with (self.out / "log.txt").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=env)

    def begin(self, name: str, *words: str) -> subprocess.Popen:
        return self.start(
            "--preset", "tiny", f"data.videos={self.videos}", f"out={self.out}", f"name={name}", *OPTIONS, *words
        )

    def end(self, driver: subprocess.Popen) -> None:
        status = driver.wait(PATIENCE_S)
        assert status == 0, (self.out / "log.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    out = tmp_path_factory.mktemp("runs")
    return Site(out, synthetic.make(out / "videos", 24))


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Path:
    site.end(site.begin("undisturbed"))
    return site.out / "undisturbed"


def progress(run_dir: Path) -> dict:
    try:
        return json.loads((run_dir / "progress.json").read_text())
    except (OSError, ValueError):
        return {}


def wait_for(claim: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def is_past_a_checkpoint(run_dir: Path) -> bool:
    """A checkpoint stands, a few steps after it are done that a kill will undo, and the next checkpoint is far."""
    steps = [line["step"] for line in read_history(run_dir).of("step")]
    return bool(steps) and restart_point(run_dir) is not None and steps[-1] % 30 in range(2, 12)


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint whole, by kind and name."""
    pieces: dict[str, list[tuple[int, np.ndarray]]] = {}
    for shard in sorted(checkpoint.glob("shard-*.safetensors")):
        for key, data in load_file(shard).items():
            kind, name, start = key.split("|")
            pieces.setdefault(f"{kind}|{name}", []).append((int(start), data))
    return {key: np.concatenate([d for _, d in sorted(parts, key=lambda p: p[0])]) for key, parts in pieces.items()}


def losses(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["loss/latent"] for line in read_history(run_dir).of("step")}


def assert_equal_to_the_undisturbed(run_dir: Path, undisturbed: Path) -> None:
    assert coverage(run_dir, STEPS * CLIPS) == ([], [])
    table = read_history(run_dir)
    assert [line["step"] for line in table.of("step")] == list(range(STEPS))
    assert table.of("step", undone=True), "the kill undid nothing, so this test shows nothing"
    assert losses(run_dir) == losses(undisturbed)
    mine, theirs = restart_point(run_dir), restart_point(undisturbed)
    assert mine is not None
    assert theirs is not None
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    assert [key for key in a if not np.array_equal(a[key], b[key])] == []
    assert {key.split("|")[0] for key in a} >= {"master", "exp_avg", "exp_avg_sq", "step", "target"}


def test_an_undisturbed_run_trains_every_sample_once(undisturbed: Path) -> None:
    assert coverage(undisturbed, STEPS * CLIPS) == ([], [])
    table = read_history(undisturbed)
    assert len(table.attempts) == 1
    assert table.of("step", undone=True) == []
    kept = [p for p in (undisturbed / "checkpoints").iterdir() if is_complete(p)]
    assert len(kept) == 2  # checkpoint.keep of the preset


def test_a_killed_worker_restarts_by_itself_and_nothing_is_lost(site: Site, undisturbed: Path) -> None:
    run_dir = site.out / "worker-killed"
    driver = site.begin(run_dir.name)
    wait_for(lambda: is_past_a_checkpoint(run_dir), "the run did not get past a checkpoint")
    os.kill(progress(run_dir)["pid"], signal.SIGKILL)
    site.end(driver)
    assert len(read_history(run_dir).attempts) == 2
    assert_equal_to_the_undisturbed(run_dir, undisturbed)


def test_a_killed_driver_is_resumed_at_the_exact_next_sample(site: Site, undisturbed: Path) -> None:
    run_dir = site.out / "driver-killed"
    driver = site.begin(run_dir.name)
    wait_for(lambda: is_past_a_checkpoint(run_dir), "the run did not get past a checkpoint")
    driver.send_signal(signal.SIGKILL)
    driver.wait(PATIENCE_S)
    site.end(site.start("--resume", str(run_dir)))
    assert_equal_to_the_undisturbed(run_dir, undisturbed)


def test_one_worker_trains_the_samples_of_two_in_every_step(site: Site, undisturbed: Path) -> None:
    site.end(site.begin("one-worker", "cluster.workers=1"))
    one, two = read_history(site.out / "one-worker"), read_history(undisturbed)
    assert [line["trained"] for line in one.of("step")] == [line["trained"] for line in two.of("step")]
    gap = [
        abs(a - b) for a, b in zip(losses(site.out / "one-worker").values(), losses(undisturbed).values(), strict=True)
    ]
    assert max(gap) < 1e-5


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left(site: Site) -> Iterator[None]:
    yield
    wait_for(lambda: not leftovers(site), f"left behind: {leftovers(site)}")


def leftovers(site: Site) -> list[str]:
    """Command lines of processes that still work in this module's folder."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            line = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(site.out) in line and int(proc.name) != os.getpid():
            found.append(line)
    return found

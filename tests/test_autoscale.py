"""Nodes that come and go: a run on a head without CPUs, with Ray's own autoscaler and fake nodes on this machine.

What the nodes are is Ray's word for it: they share the machine, its disk and its cores, and have no GPUs.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from autoscaling import Cluster, NodeType, autoscaling

from rayjepa.data import synthetic
from rayjepa.train.history import coverage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 400
IDLE_S = 20.0
LABELS = ["cluster.train_label=rayjepa.io/role=train", "cluster.decode_label=rayjepa.io/role=decode"]
KINDS = {
    "decode": NodeType({"CPU": 2}, {"rayjepa.io/role": "decode"}, most=1),
    "train": NodeType({"CPU": 1}, {"rayjepa.io/role": "train"}, most=2),
}


@pytest.fixture(scope="module")
def site() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="rj-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        autoscaling(Path(folder), KINDS, idle_s=IDLE_S) as site,
    ):
        yield site


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make(tmp_path_factory.mktemp("videos"), 24)


def start(site: Cluster, out: Path, videos: Path, name: str, *words: str) -> subprocess.Popen:
    """A driver as its user would start it, with its words in NAME.log."""
    options = [f"data.videos={videos}", f"out={out}", f"name={name}", *LABELS, *words]
    command = [sys.executable, "-m", "rayjepa.cli", "pretrain", "--preset", "tiny", *options]
    with (out / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=site.environment)


def wait_for(claim: Callable[[], bool], what: str) -> float:
    began = time.monotonic()
    while not claim():
        assert time.monotonic() - began < PATIENCE_S, what
        time.sleep(0.2)
    return time.monotonic() - began


def test_a_run_brings_up_its_nodes_trains_and_lets_them_go(site: Cluster, tmp_path: Path, videos: Path) -> None:
    assert site.ask("nodes") == {"head": 1}
    began = time.monotonic()
    driver = start(site, tmp_path, videos, "grown")
    log = tmp_path / "grown.log"
    marks: dict[str, float] = {}

    def reached(name: str, claim: Callable[[], bool]) -> None:
        wait_for(lambda: claim() or driver.poll() is not None, f"{name}: {log.read_text()[-3000:]}")
        marks[name] = round(time.monotonic() - began, 1)

    reached("asked", lambda: "waiting for nodes" in log.read_text())
    reached("nodes", lambda: site.ask("nodes") == {"head": 1, "decode": 1, "train": 2})
    reached("first step", lambda: bool(list((tmp_path / "grown").glob("metrics/*.jsonl"))))
    assert driver.wait(PATIENCE_S) == 0, log.read_text()[-3000:]
    marks["end"] = round(time.monotonic() - began, 1)
    wait_for(lambda: site.ask("nodes") == {"head": 1}, "the nodes are let go")
    marks["let go"] = round(time.monotonic() - began, 1)
    print("seconds", marks)

    assert coverage(tmp_path / "grown", 32) == ([], [])
    said = log.read_text()
    assert "2 x {CPU: 1} with rayjepa.io/role=train for training" in said
    assert "2 x {CPU: 1} with rayjepa.io/role=decode for decoding" in said
    assert "the autoscaler is starting" in said


def test_what_the_autoscaler_cannot_bring_is_refused_with_the_numbers(site: Cluster) -> None:
    labels = dict(word.split("=", 1) for word in LABELS)
    many = site.ask("refusal", {**labels, "cluster.workers": 4})
    assert "4 x {CPU: 1} with rayjepa.io/role=train for training (cluster.workers" in many
    assert "Its autoscaler says that it cannot bring them" in many
    misspelt = site.ask("refusal", {**labels, "cluster.train_label": "rayjepa.io/role=tarin"})
    assert "Missing: 2 x {CPU: 1} with rayjepa.io/role=tarin" in misspelt
    assert site.ask("refusal", labels) is None


def test_ctrl_c_ends_a_run_that_waits_for_nodes_that_others_use(site: Cluster, tmp_path: Path, videos: Path) -> None:
    assert site.ask("hold", 2, "train")
    driver = start(site, tmp_path, videos, "waiting")
    log = tmp_path / "waiting.log"
    wait_for(lambda: "waiting for nodes" in log.read_text() or driver.poll() is not None, "it says that it waits")
    assert site.ask("wishes") == 1
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE_S) == 130, log.read_text()[-3000:]
    assert "missing 2 x {CPU: 1} with rayjepa.io/role=train for training" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert json.loads((tmp_path / "waiting" / "outcome.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "waiting" / "attempts").exists()
    wait_for(lambda: site.ask("wishes") == 0, "its wish ends with it")

"""Out of memory, for real: allocations that nothing can grant. `python tests/test_shortage.py OUT` is one rank."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rayjepa.cli import main
from rayjepa.config import RunConfig, prefetch_of, resolve
from rayjepa.data import manifest, synthetic
from rayjepa.data.batch import ClipBatch
from rayjepa.data.index import indexing
from rayjepa.data.tape import Tape
from rayjepa.train import folder, history
from rayjepa.train.attempts import read_attempts, record_attempt, record_end
from rayjepa.train.session import take_part
from rayjepa.train.shortage import KILLED, SHORT, advice, explained, kind_of, refuse_to_repeat

CPU = torch.device("cpu")
HUGE = 1 << 50
"""Bytes; more than the address space of a process here can have."""
TIMEOUT_S = 150.0
"""Five times what two ranks take on two idle cores."""
TOO_LARGE = "predictor.mlp_ratio=4e9"
"""A predictor of terabytes: its weights cannot be allocated."""


def _error(act: Callable[[], object]) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        act()
    return caught.value


def _run(**overrides: object) -> RunConfig:
    return resolve("tiny", {key.replace("__", "."): value for key, value in overrides.items()})


def _starved() -> Iterator[ClipBatch]:
    torch.empty(HUGE, dtype=torch.uint8)
    yield from ()


@pytest.mark.parametrize(
    "act",
    [
        lambda: torch.empty(HUGE, dtype=torch.uint8),
        lambda: np.empty(HUGE, dtype=np.uint8),
        lambda: bytearray(HUGE),
    ],
    ids=["torch", "numpy", "python"],
)
def test_errors_of_the_hosts_memory_are_known(act: Callable[[], object]) -> None:
    assert kind_of(_error(act)) == "host"


def test_errors_of_a_gpus_memory_are_known() -> None:
    assert kind_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) == "device"
    assert kind_of(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")) == "device"
    assert kind_of(RuntimeError("Expected all tensors to be on the same device")) is None


def test_the_message_names_knobs_in_order_with_their_values() -> None:
    run = _run(cluster__workers=1, train__clips=6, zero__stage=1)
    with pytest.raises(RuntimeError) as caught, explained(run, device=CPU):
        torch.empty(HUGE, dtype=torch.uint8)
    text = str(caught.value)
    assert text.startswith(f"{SHORT} on the host of cpu, rank 0, while training (")
    order = [
        "DefaultCPUAllocator",
        "train.accumulation=1 (a rank takes 6 clips at once: set 2)",
        "train.checkpoint_blocks=false",
        "zero.stage=1",
        "data.frames=4",
        "data.size_px=32",
        f"cluster.prefetch={prefetch_of(run)}",
        "cluster.decoders=1",
        "cluster.object_store_gib=0.2",
    ]
    places = [text.find(knob) for knob in order]
    assert -1 not in places
    assert places == sorted(places)
    assert resolve("tiny", {"cluster.workers": 1, "train.clips": 6, "train.accumulation": 2}).micro_batch == 3


def test_only_knobs_that_can_help_are_named() -> None:
    tight = _run(cluster__workers=4, train__checkpoint_blocks=True, zero__stage=3)
    text = advice(tight, "device", CPU)
    assert "train.accumulation" not in text
    assert "train.checkpoint_blocks" not in text
    assert "zero.stage" not in text
    assert "cluster." not in text
    assert "data.size_px=32" in text
    assert "health.batch=16" in advice(tight, "device", CPU, examining=True)
    assert "cluster." not in advice(_run(cluster__workers=0), "host", CPU)
    assert "data." not in advice(tight, "host", torch.device("cuda", 1)).replace("data.decode_memory_gib", "")
    assert "train." not in advice(tight, "host")  # Ray ended a worker: the model's share is not known to be at fault


def test_an_inner_explanation_and_other_errors_pass_unchanged() -> None:
    run = _run()
    inner = explained(run, device=CPU, examining=True)
    with pytest.raises(RuntimeError, match="while examining held-out clips"), explained(run, device=CPU), inner:
        bytearray(HUGE)
    with pytest.raises(RuntimeError, match=r"^something else$"), explained(run, device=CPU):
        raise RuntimeError("something else")


def test_a_start_where_memory_was_short_is_not_repeated_by_the_same_driver(tmp_path: Path) -> None:
    refuse_to_repeat(tmp_path, owner="me")
    record_attempt(tmp_path, owner="me", checkpoint=None, start=0, world=2)
    record_end(tmp_path, 1, {0: "Connection closed by peer", 1: f"{SHORT} on cuda:1"})
    with pytest.raises(RuntimeError, match=f"^{SHORT} on cuda:1$"):
        refuse_to_repeat(tmp_path, owner="me")
    refuse_to_repeat(tmp_path, owner="somebody who resumes with other knobs")
    record_attempt(tmp_path, owner="me", checkpoint=None, start=0, world=2)
    record_end(tmp_path, 2, {0: "a worker's process died", 1: f"{KILLED}: Ray ended a worker"})
    refuse_to_repeat(tmp_path, owner="me")


def test_the_command_ends_with_the_knobs_and_no_traceback(tmp_path: Path, capfd, caplog) -> None:
    videos = synthetic.make(tmp_path / "videos", 4)
    words = ["cluster.workers=0", "train.engine=plain", f"data.videos={videos}", f"out={tmp_path}", "name=run"]
    assert main(["pretrain", "--preset", "tiny", *words, TOO_LARGE]) == 1
    text = capfd.readouterr().err + caplog.text
    assert f"rayjepa: {SHORT} on the host of cpu, rank 0, while training" in text
    assert "train.accumulation=1" in text
    assert "Traceback" not in text
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["state"] == "failed"
    assert outcome["reason"].startswith(SHORT)


@pytest.mark.ray
def test_the_rank_that_was_short_is_heard_above_those_that_lost_it() -> None:
    """Errors as Ray Train hands them on: of all ranks that were dead when it looked, whatever their order."""
    import ray.exceptions
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    from rayjepa.on_ray.trainer import cause
    from rayjepa.train.shortage import completed

    lost = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "")
    short = UserExceptionWithTraceback(RuntimeError(f"{SHORT} on cuda:1, rank 1"), "")
    assert cause(WorkerGroupError("", {0: lost, 1: short})) == f"{SHORT} on cuda:1, rank 1"
    killed = ray.exceptions.OutOfMemoryError("Memory on the node (IP: 10.0.0.1) was 23.0GB / 24.0GB. More words")
    text = completed(cause(WorkerGroupError("", {0: lost, 1: killed})), _run())
    assert text.startswith(f"{SHORT} on a node: Ray ended a worker (Memory on the node (IP: 10.0.0.1) was")
    assert f"cluster.prefetch={prefetch_of(_run())}" in text


# A rank of its own: rank 1's stream asks for more memory than there is, rank 0's goes on.


def _one_rank(out: Path) -> str:
    run = resolve(str(out / "run" / "run.yaml"), {})
    tape = Tape(run, manifest.read(out / "run" / "manifest.parquet"))
    from made_clips import made_stream

    rank = int(os.environ["RANK"])
    batches = _starved() if rank == 1 else made_stream(run, rank=0, world=2)
    try:
        take_part(run, out / "run", history.newest_attempt(out / "run", owner="me"), batches, tape=tape, device=CPU)
    except RuntimeError as error:
        return str(error)
    return "finished"


@pytest.mark.dist
@pytest.mark.slow
def test_one_short_rank_ends_at_once_and_leaves_no_other_waiting(tmp_path: Path) -> None:
    videos = indexing.index(str(synthetic.make(tmp_path / "videos", 24)), cfg=_run().data)
    run = _run(name="run", out=str(tmp_path), train__engine="plain", train__steps=4)
    run_dir, _ = folder.create(run, videos, preset="tiny")
    history.begin_attempt(run_dir, owner="me", world=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert f"{SHORT} on the host of cpu, rank 1, while training" in said[1]
    assert SHORT not in said[0]
    assert "finished" not in said[0]
    assert time.monotonic() - began < TIMEOUT_S


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_a_model_that_no_restart_will_fit_is_not_started_again(tmp_path: Path) -> None:
    videos = synthetic.make(tmp_path / "videos", 24)
    words = [f"data.videos={videos}", f"out={tmp_path}", "name=run", "train.engine=plain", TOO_LARGE]
    done = subprocess.run(
        [sys.executable, "-m", "rayjepa.cli", "pretrain", "--preset", "tiny", *words],
        env={k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"rayjepa: {SHORT} on the host of cpu, rank " in done.stderr
    assert "train.accumulation=1 (a rank takes 2 clips at once: set 2)" in done.stderr
    assert len(read_attempts(tmp_path / "run")) == 1


if __name__ == "__main__":
    print(_one_rank(Path(sys.argv[1])), flush=True)
    os._exit(0)  # as a killed worker does, without a farewell to the others

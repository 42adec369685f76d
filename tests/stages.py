"""Every kind of engine in processes of their own (tests/stage_jobs.py), launched once for all tests of ZeRO.

`python tests/stages.py` prints how far each stage is from training written out, at one and at two ranks.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from written_out import State, train_written_out

from rayjepa.config import RunConfig, resolve
from rayjepa.model import build
from rayjepa.train.checkpoint import read_state, save
from rayjepa.train.engine import Engine
from rayjepa.train.ledger import Ledger
from rayjepa.train.pieces import read_index

CPU = torch.device("cpu")
KINDS = ("plain", "zero0", "zero1", "zero2", "zero3")
MOVES = (
    *((kind, kind) for kind in KINDS),
    ("zero1", "zero3"), ("zero3", "zero1"), ("zero3", "plain"), ("plain", "zero3"), ("zero0", "zero2"),
)  # fmt: skip
"""Who saved at two ranks, and who goes on from there at one."""
JOBS = Path(__file__).with_name("stage_jobs.py")
TIMEOUT_S = 240.0
"""Five times what the longest job takes on two idle cores."""
HELD_OUT = (5, 4, 1)
"""Clips that ranks examine together: one batch more on the first rank, as many on both, and none on the second."""

Found = dict[str, Any]


def config(kind: str = "plain", *, world: int = 1, **overrides: object) -> RunConfig:
    """The tiny run under an engine: plain, or zero0 to zero3; `a__b` overrides a.b.

    Widths of the predictor are odd, so that two ranks do not share its parameters evenly.
    """
    base = {
        "predictor.width": 9,
        "predictor.heads": 1,
        "cluster.workers": world,
        "train.engine": kind.rstrip("0123"),
        "zero.stage": int(kind[-1]) if kind != "plain" else 1,
        "train.accumulation": 2,
        "train.steps": 4,
        "train.clips": 8,
        "optim.clip": 0.5,
        "optim.max_norm": 1000,
        "health.batch": 2,
    }
    return resolve("tiny", base | {key.replace("__", "."): value for key, value in overrides.items()})


SEPARATE = {"optim__clip": 0.3, "optim__clip_parts": "separate", "optim__clip_from_step": 1}
UNLIKE = {"train__accumulation": 1, **SEPARATE, "train__checkpoint_blocks": True}
"""Other values of some knobs; only those of clipping may change what is trained."""
WRITTEN: dict[str, dict[str, object]] = {
    "written": {},
    "written separate": SEPARATE,
    "written unclipped": {"optim__clip": None},
    "written bf16": {"train__precision": "bf16"},
}
"""Runs that are also trained written out."""
PERSISTENT = 600
"""Elements up to which stage 3 keeps a parameter gathered in these tests: some of each kind of module's."""


def foreign() -> State:
    """Weights of other seeds for the same model, by kind and name; the target's are not the encoder's."""
    jepa, target = build(config(seed=8)), build(config(seed=9)).encoder
    masters: State = {("master", name): tensor for name, tensor in jepa.state_dict().items()}
    return masters | {("target", name): tensor for name, tensor in target.state_dict().items()}


def save_at(engine: Engine, folder: Path, finished: int) -> Path:
    return save(engine, folder, config(), attempt=1, finished=finished, ledger=Ledger(), fingerprint="")


def saved_in(folder: Path) -> Path:
    (saved,) = (folder / "checkpoints").iterdir()
    return saved


def whole(folder: Path) -> State:
    """Every tensor of a checkpoint, put together."""
    shapes, stored = read_index(folder, shards=read_state(folder).world)
    tensors: State = {}
    for key in shapes:
        parts: list[Tensor] = []
        for part in stored[key]:
            with safe_open(part.file, framework="pt") as file:
                parts.append(file.get_tensor(part.key))
        tensors[key] = torch.cat(parts)
    return tensors


def mean(found: list[Found], *path: str) -> list[float]:
    """Per-step losses, mean over ranks."""
    rows: list[Any] = list(found)
    for key in path:
        rows = [row[key] for row in rows]
    return [sum(values) / len(values) for values in zip(*rows, strict=True)]


def launch(job: str, folder: Path, *, world: int) -> list[Found]:
    """Run a job in `world` processes; return what each rank found, in rank order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [folder / f"{job}-{rank}.log" for rank in range(world)]
    ranks: list[subprocess.Popen[bytes]] = []
    for rank, log in enumerate(logs):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(JOBS), job, str(folder)]
        with log.open("wb") as said:
            ranks.append(subprocess.Popen(command, env={**os.environ, **place, **meet}, stdout=said, stderr=said))
    until = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < until and any(rank.poll() is None for rank in ranks):
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    results = [folder / f"{job}-{rank}.pt" for rank in range(world)]
    # The files count, not the exit codes: PyTorch was once seen to abort after all work was done.
    assert all(path.exists() for path in results), "\n".join(log.read_text() for log in logs)
    return [torch.load(path, weights_only=False) for path in results]


class Stages:
    """The launches, each made when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, list[Found] | None] = {}

    @property
    def two(self) -> list[Found]:
        return self._once("two_ranks", world=2)

    @property
    def one(self) -> Found:
        assert self.two  # which saves what it reads
        return self._once("one_rank", world=1)[0]

    @property
    def two_again(self) -> list[Found]:
        assert self.one
        return self._once("two_ranks_again", world=2)

    def _once(self, job: str, *, world: int) -> list[Found]:
        if job not in self._found:
            self._found[job] = None
            self._found[job] = launch(job, self.folder, world=world)
        found = self._found[job]
        assert found is not None, f"{job} failed, as the first test says that asked for it"
        return found


def table() -> None:
    """Print the largest differences from training written out."""
    expected = {p: train_written_out(config(train__precision=p), 10, keep=(3, 10)) for p in ("fp32", "bf16")}
    print("engine precision ranks steps       loss parameters     target")
    with tempfile.TemporaryDirectory() as name:
        for world in (1, 2):
            found = launch("figures", Path(name), world=world)
            for key in found[0]:
                reference = expected[key.split()[1]]
                for steps in (3, 10):
                    off = [abs(a - b) for a, b in zip(mean(found, key)[:steps], reference.losses[:steps], strict=True)]
                    saved, state = whole(saved_in(Path(name, f"{key} {steps}"))), reference.states[steps]
                    apart = {k: max(float((saved[c] - state[c]).abs().max()) for c in state if c[0] == k)
                             for k in ("master", "target")}  # fmt: skip
                    row = (max(off), apart["master"], apart["target"])
                    print(f"{key:14} {steps:7}   " + " ".join(f"{value:10.1e}" for value in row), flush=True)


if __name__ == "__main__":
    table()

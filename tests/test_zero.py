"""ZeRO against the plain engine, in processes of their own: `python tests/test_zero.py JOB FOLDER` is one rank."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_clips import SPOILS, differing, made_spec, made_stream, snapshot, take_step
from safetensors import safe_open
from torch import Tensor

from rayjepa.config import RunConfig, resolve
from rayjepa.data.clip import Failure
from rayjepa.model import build
from rayjepa.train import plain
from rayjepa.train.checkpoint import read_state, restart_point, restore, save
from rayjepa.train.engine import Engine, make_engine
from rayjepa.train.history import History, begin_attempt, coverage, read_history
from rayjepa.train.ledger import Ledger
from rayjepa.train.loop import train
from rayjepa.train.pieces import read_index
from rayjepa.train.zero import deepspeed_config

pytestmark = pytest.mark.dist

CPU = torch.device("cpu")
KINDS = ("plain", "zero0", "zero1", "zero2")
TIMEOUT_S = 150.0
"""Five times what the longest job takes on two idle cores."""


def _run(kind: str = "plain", *, world: int = 1, precision: str = "fp32", seed: int = 0) -> RunConfig:
    return resolve(
        "tiny",
        {
            "cluster.workers": world,
            "train.engine": kind[:-1] if kind.startswith("zero") else kind,
            "zero.stage": int(kind[-1]) if kind.startswith("zero") else 1,
            "train.precision": precision,
            "train.accumulation": 2,
            "train.steps": 4,
            "train.clips": 8,
            "optim.clip": 1.0,
            "optim.max_norm": 1000,
            "seed": seed,
        },
    )


def _save(engine: Engine, folder: Path, finished: int) -> Path:
    return save(engine, folder, _run(), attempt=1, finished=finished, ledger=Ledger(), fingerprint="")


# Jobs: each runs in every rank and returns what the test looks at.


def _two_ranks(folder: Path) -> dict[str, Any]:
    """Every engine at two ranks: three steps, refused steps, a checkpoint, and what came after it."""
    found: dict[str, Any] = {}
    plain.BUCKET = 5000  # several buckets, also in a tiny model
    for kind in KINDS:
        run = _run(kind, world=2)
        engine = make_engine(run, device=CPU)
        losses = [take_step(engine, run, step)[1] for step in range(3)]
        before = snapshot(engine)
        reasons = {how: take_step(engine, run, 9, spoil=how)[0].refused for how in SPOILS}
        changed = differing(before, snapshot(engine))
        saved = _save(engine, folder / kind, 3)
        other = make_engine(_run(kind, world=2, seed=7), device=CPU)
        restore(other, saved)
        found[kind] = {
            "losses": losses,
            "reasons": reasons,
            "changed": changed,
            "restored": differing(before, snapshot(other)),
            "after": [take_step(engine, run, step)[1] for step in range(3, 6)],
            "after_restore": [take_step(other, run, step)[1] for step in range(3, 6)],
            "ended": differing(snapshot(engine), snapshot(other)),
        }
    found["loop"] = _loop_on_two_ranks(folder / "loop")
    found["write_error"] = _write_error(folder / "error")
    for kind in ("plain", "zero1", "zero2"):  # last: DeepSpeed's autocast is for the whole process
        run = _run(kind, world=2, precision="bf16")
        engine = make_engine(run, device=CPU)
        losses = [take_step(engine, run, step)[1] for step in range(2)]
        before = snapshot(engine)
        refused = take_step(engine, run, 9, spoil="nan loss")[0].refused
        found[f"bf16 {kind}"] = {
            "losses": losses,
            "refused": refused,
            "changed": differing(before, snapshot(engine)),
            "dtypes": {str(tensor.dtype) for tensor in before.values()},
        }
    return found


def _loop_on_two_ranks(folder: Path) -> dict[str, Any]:
    """The loop, with a clip that only rank 1 has to substitute, and a wish to stop that only rank 1 has."""
    run = _run("zero1", world=2)
    engine = make_engine(run, device=CPU)
    if engine.rank == 0:
        begin_attempt(folder, owner="me", world=2)
    history, ledger = History(folder, attempt=1, rank=engine.rank), Ledger()
    batches = list(made_stream(run, rank=engine.rank, world=2))
    if engine.rank == 1:
        first = batches[0].specs[0].index
        failure = Failure(index=first, attempt=0, video=0, uri="bad", stage="demux", kind="io", reason="gone")
        specs = (made_spec(run, first, 1), *batches[0].specs[1:])
        batches[0] = dataclasses.replace(batches[0], specs=specs, failures=(failure,))
    asked = iter([False, False, engine.rank == 1])
    reports: list[dict[str, Any]] = []
    finished = train(
        engine,
        batches,
        run,
        start=0,
        report=lambda metrics, _: reports.append(dict(metrics)),
        history=history,
        save=lambda *, finished, ledger: save(
            engine, folder, run, attempt=1, finished=finished, ledger=ledger, fingerprint=""
        ),
        stop=lambda: next(asked),
        ledger=ledger,
    )
    return {"finished": finished, "failures": ledger.failures, "reports": reports}


def _write_error(folder: Path) -> str:
    """What a rank hears when the other cannot write."""
    engine = make_engine(_run("plain", world=2), device=CPU)
    if engine.rank == 1:
        engine.save = _no_space  # type: ignore[method-assign]
    try:
        _save(engine, folder, 1)
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


def _no_space(folder: Path) -> None:
    raise OSError(28, "No space left on device")


def _one_rank(folder: Path) -> dict[str, Any]:
    """Every engine at one rank: what two ranks saved, by the same engine and by others, and on from there."""
    found: dict[str, Any] = {}
    for source, kind in (*((k, k) for k in KINDS), ("zero2", "plain"), ("plain", "zero1"), ("zero0", "zero2")):
        run = _run(kind)
        engine = make_engine(_run(kind, seed=7), device=CPU)
        saved = restart_point_of(folder / source)
        restore(engine, saved)
        again = _save(engine, folder / f"{source}-{kind}", 3)
        assert again.exists()
        found[f"{source} {kind}"] = [take_step(engine, run, step)[1] for step in range(3, 6)]
        engine.close()  # and the next engine of this process still works
    return found


def _two_ranks_again(folder: Path) -> dict[str, Any]:
    """What one rank saved, at two ranks once more."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        run = _run(kind, world=2)
        engine = make_engine(_run(kind, world=2, seed=7), device=CPU)
        restore(engine, restart_point_of(folder / f"{kind}-{kind}"))
        _save(engine, folder / f"{kind}-again", 3)
        found[kind] = [take_step(engine, run, step)[1] for step in range(3, 6)]
    return found


def restart_point_of(folder: Path) -> Path:
    (saved,) = (folder / "checkpoints").iterdir()
    return saved


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "two_ranks": _two_ranks,
    "one_rank": _one_rank,
    "two_ranks_again": _two_ranks_again,
}


def _launch(job: str, folder: Path, *, world: int) -> list[dict[str, Any]]:
    """Run a job in `world` processes; return what each rank found, in rank order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks: list[subprocess.Popen[str]] = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, job, str(folder)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks.append(subprocess.Popen(command, env={**os.environ, **place, **meet}, **pipes))
    until = time.monotonic() + TIMEOUT_S
    try:
        said = [rank.communicate(timeout=max(1.0, until - time.monotonic()))[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    results = [folder / f"{job}-{rank}.pt" for rank in range(world)]
    # The files count, not the exit codes: PyTorch was once seen to abort after all work was done.
    assert all(path.exists() for path in results), "\n".join(said)
    return [torch.load(path, weights_only=False) for path in results]


def _whole(folder: Path) -> dict[tuple[str, str], Tensor]:
    """Every tensor of a checkpoint, put together."""
    shapes, stored = read_index(folder, shards=read_state(folder).world)
    tensors: dict[tuple[str, str], Tensor] = {}
    for key in shapes:
        parts: list[Tensor] = []
        for part in stored[key]:
            with safe_open(part.file, framework="pt") as file:
                parts.append(file.get_tensor(part.key))
        tensors[key] = torch.cat(parts)
    return tensors


def _mean(found: list[dict[str, Any]], *path: str) -> list[float]:
    """Per-step losses, mean over ranks."""
    rows: list[Any] = list(found)
    for key in path:
        rows = [row[key] for row in rows]
    return [sum(values) / len(values) for values in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return _launch("two_ranks", folder, world=2)


@pytest.fixture(scope="module")
def one(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return _launch("one_rank", folder, world=1)


@pytest.fixture(scope="module")
def two_again(folder: Path, one: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return _launch("two_ranks_again", folder, world=2)


@pytest.fixture(scope="module")
def alone() -> tuple[list[float], dict[str, Tensor]]:
    """Losses and state of the plain engine in one process, after three steps."""
    run = _run()
    engine = plain.PlainEngine(run, build(run), device=CPU)
    losses = [take_step(engine, run, step)[1] for step in range(3)]
    return losses, {f"{p.kind} {p.name}": p.data for p in engine._pieces()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_plain_process(
    kind: str, two: list[dict[str, Any]], folder: Path, alone: tuple[list[float], dict[str, Tensor]]
) -> None:
    losses, state = alone
    assert _mean(two, kind, "losses") == pytest.approx(losses, abs=1e-6)
    for (part, name), tensor in _whole(restart_point_of(folder / kind)).items():
        expected = state[f"{part} {name}"]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6, msg=f"{part} {name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("how", "reason"), SPOILS.items())
def test_one_ranks_bad_step_is_refused_on_all(kind: str, how: str, reason: str, two: list[dict[str, Any]]) -> None:
    said = [found[kind]["reasons"][how] for found in two]
    assert said[0] == said[1]
    assert reason in said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_refused_steps_leave_every_bit(kind: str, two: list[dict[str, Any]]) -> None:
    assert [found[kind]["changed"] for found in two] == [[], []]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_at_the_same_world_size_is_bit_equal(kind: str, two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found[kind]["restored"] == []
        assert found[kind]["after"] == found[kind]["after_restore"]
        assert found[kind]["ended"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_survives_another_world_size_and_back(
    kind: str, folder: Path, two: list[dict[str, Any]], two_again: list[dict[str, Any]]
) -> None:
    saved, at_one, at_two = (_whole(restart_point_of(folder / n)) for n in (kind, f"{kind}-{kind}", f"{kind}-again"))
    assert saved.keys() == at_one.keys() == at_two.keys()
    assert all(torch.equal(tensor, at_one[key]) and torch.equal(tensor, at_two[key]) for key, tensor in saved.items())
    assert _mean(two_again, kind) == _mean(two, kind, "after")


@pytest.mark.parametrize(
    ("source", "kind"), [(k, k) for k in KINDS] + [("zero2", "plain"), ("plain", "zero1"), ("zero0", "zero2")]
)
def test_another_engine_or_world_size_goes_on_equally(
    source: str, kind: str, two: list[dict[str, Any]], one: list[dict[str, Any]]
) -> None:
    assert one[0][f"{source} {kind}"] == pytest.approx(_mean(two, source, "after"), abs=1e-6)


@pytest.mark.parametrize("kind", ["zero1", "zero2"])
def test_bf16_has_float32_state_refuses_alike_and_agrees_with_plain(kind: str, two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found[f"bf16 {kind}"]["dtypes"] == {"torch.float32"}
        assert found[f"bf16 {kind}"]["refused"] == "loss is nan"
        assert found[f"bf16 {kind}"]["changed"] == []
    assert _mean(two, f"bf16 {kind}", "losses") == pytest.approx(_mean(two, "bf16 plain", "losses"), abs=1e-6)


def test_the_loop_on_two_ranks_shares_failures_metrics_and_the_wish_to_stop(
    two: list[dict[str, Any]], folder: Path
) -> None:
    zero, one = (found["loop"] for found in two)
    assert zero["finished"] == one["finished"] == 3
    assert zero["failures"] == one["failures"]
    assert [f["uri"] for f in zero["failures"]] == ["bad"]
    assert zero["reports"] == one["reports"]
    assert coverage(folder / "loop", 3 * 8) == ([], [])
    saved = restart_point(folder / "loop")
    assert saved is not None
    state = read_state(saved)
    assert (state.finished, state.world, state.ledger) == (3, 2, zero["failures"])
    assert [line["trained"] for line in read_history(folder / "loop").of("step")] == [[[0, 8]], [[8, 16]], [[16, 24]]]


def test_a_rank_that_cannot_write_stops_all_before_the_marker(two: list[dict[str, Any]], folder: Path) -> None:
    assert "another rank could not write its part of the checkpoint" in two[0]["write_error"]
    assert all("No space left on device" in found["write_error"] for found in two)
    assert not (restart_point_of(folder / "error") / "complete").exists()


def test_the_deepspeed_dictionary_is_a_function_of_the_run() -> None:
    run = _run("zero2", world=2, precision="bf16")
    config = deepspeed_config(run)
    assert config == deepspeed_config(resolve(None, json.loads(json.dumps(dataclasses.asdict(run), default=str))))
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 2)
    assert (config["zero_optimization"]["stage"], config["gradient_clipping"]) == (2, 1.0)
    assert config["torch_autocast"]["lower_precision_safe_modules"] == []


def _main(job: str, folder: Path) -> None:
    torch.set_num_threads(1)
    found = JOBS[job](folder)
    torch.save(found, folder / f"{job}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))

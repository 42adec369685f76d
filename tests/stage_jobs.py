"""Jobs for the tests of ZeRO, each run by every rank: `python tests/stage_jobs.py JOB FOLDER` is one rank."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from made_clips import SPOILS, differing, made_clips, made_spec, made_stream, snapshot, take_step
from stages import CPU, HELD_OUT, KINDS, MOVES, PERSISTENT, UNLIKE, WRITTEN, Found, config, foreign, save_at, saved_in
from torch import Tensor
from written_out import train_written_out

from rayjepa.config import RunConfig
from rayjepa.data.clip import Failure
from rayjepa.health import clip_features, gathered, most_passes, share
from rayjepa.train import plain, zero
from rayjepa.train.checkpoint import restore, save
from rayjepa.train.engine import Engine, make_engine
from rayjepa.train.history import History, begin_attempt
from rayjepa.train.ledger import Ledger
from rayjepa.train.loop import train


def two_ranks(folder: Path) -> Found:
    """Every engine at two ranks: steps, refused steps, a checkpoint, and what came after it."""
    found = {kind: _life(kind, folder / kind) for kind in KINDS}
    for kind in KINDS:
        run = config(kind, world=2, **UNLIKE)
        engine = make_engine(run, device=CPU)
        found[f"{kind} unlike"] = trained(run, folder / f"{kind}-unlike", engine=engine) | _refusals(engine, run)
        found[f"{kind} adopted"] = _adopted(kind, folder / f"{kind}-adopted")
    found["loop"] = _loop_on_two_ranks(folder / "loop")
    found["write_error"] = {"said": _write_error(folder / "error")}
    for kind in KINDS:  # last: DeepSpeed's autocast is for the whole process
        run = config(kind, world=2, train__precision="bf16", train__checkpoint_blocks=kind[-1] in "23")
        engine = make_engine(run, device=CPU)
        found[f"{kind} bf16"] = trained(run, folder / f"{kind}-bf16", engine=engine)
        found[f"{kind} bf16"] |= _refusals(engine, run, ("nan loss", "inf gradient"))
    return found


def trained(run: RunConfig, folder: Path, *, engine: Engine | None = None, steps: int = 3) -> Found:
    """Losses and gradient norms of the first steps, and a checkpoint after them."""
    engine = engine or make_engine(run, device=CPU)
    losses, norms, running = [], [], []
    for step in range(steps):
        taken, loss = take_step(engine, run, step)
        losses.append(loss)
        norms.append(taken.grad_norm)
        running.append(len(getattr(engine, "_running", ())))
    save_at(engine, folder, steps)
    return {"losses": losses, "norms": norms, "running": running}


def _refusals(engine: Any, run: RunConfig, ways: Iterable[str] = SPOILS) -> Found:
    """What a step that the last rank spoils comes to, each way of spoiling it in turn."""
    before = snapshot(engine)
    reasons = {how: take_step(engine, run, 9, spoil=how)[0].refused for how in ways}
    after = snapshot(engine)
    dtypes = {str(tensor.dtype) for tensor in after.values()}
    return {"reasons": reasons, "changed": differing(before, after), "dtypes": dtypes}


def _life(kind: str, folder: Path) -> Found:
    run = config(kind, world=2)
    engine = make_engine(run, device=CPU)
    found = trained(run, folder, engine=engine)
    found["live"] = [sum(p.numel() for p in part.parameters()) for part in (engine.jepa, engine.target)]
    found["features"] = [_features(engine, run, clips) for clips in HELD_OUT]
    found |= _refusals(engine, run)
    never_saw_them = make_engine(config(kind, world=2, seed=7), device=CPU)
    for step in range(2):  # a state to be replaced, gathered parameters of stage 3 among it
        take_step(never_saw_them, run, step)
    restore(never_saw_them, saved_in(folder))
    found["restored"] = differing(snapshot(engine), snapshot(never_saw_them))
    found["after"] = [take_step(engine, run, step)[1] for step in range(3, 6)]
    found["after_restore"] = [take_step(never_saw_them, run, step)[1] for step in range(3, 6)]
    found["ended"] = differing(snapshot(engine), snapshot(never_saw_them))
    return found


def _adopted(kind: str, folder: Path) -> Found:
    """The first step of an engine that was given other weights than it was made with, and what it held before."""
    run = config(kind, world=2, seed=7)
    engine = make_engine(run, device=CPU)
    engine.adopt(foreign())
    save_at(engine, folder, 0)
    return {"losses": [take_step(engine, run, 0)[1]]}


def _features(engine: Engine, run: RunConfig, clips: int) -> Tensor:
    """The target's features of the first so many clips, as health finds them."""
    mine = share(range(clips), rank=engine.rank, world=engine.world)
    batches = [made_clips(run, mine[at : at + 2]) for at in range(0, len(mine), 2)]
    passes = most_passes(clips, world=engine.world, batch=2)
    return gathered(clip_features(engine.target, batches, run, device=CPU, passes=passes), engine.world)


def one_rank(folder: Path) -> Found:
    """Every engine at one rank, from the start and from what two ranks saved; and training written out."""
    found: Found = {kind: trained(config(kind), folder / f"{kind}-alone") for kind in KINDS}
    for kind in KINDS:
        found[f"{kind} unlike"] = trained(config(kind, **UNLIKE), folder / f"{kind}-alone-unlike")
    for name, overrides in WRITTEN.items():
        found[name] = train_written_out(config(**overrides), 6, keep=(3,))
    for source, kind in MOVES:
        run = config(kind)
        with _small_sub_groups():
            engine = make_engine(config(kind, seed=7), device=CPU)
        restore(engine, saved_in(folder / source))
        save_at(engine, folder / f"{source}-{kind}", 3)
        found[f"{source} {kind}"] = [take_step(engine, run, step)[1] for step in range(3, 6)]
        engine.close()  # and the next engine of this process still works
    for kind in KINDS:
        bf16 = config(kind, train__precision="bf16", train__checkpoint_blocks=kind[-1] in "13")
        found[f"{kind} bf16"] = trained(bf16, folder / f"{kind}-alone-bf16")
    return found


@contextmanager
def _small_sub_groups() -> Iterator[None]:
    """Let stage 3 step its parameters in many groups, as it does above a thousand million elements a rank."""
    usual = zero.deepspeed_config

    def grouped(run: RunConfig) -> dict[str, Any]:
        made = usual(run)
        return made | {"zero_optimization": made["zero_optimization"] | {"sub_group_size": 2000}}

    zero.deepspeed_config = grouped
    try:
        yield
    finally:
        zero.deepspeed_config = usual


def two_ranks_again(folder: Path) -> Found:
    """What one rank saved, by the source's kind of engine at two ranks once more."""
    found: Found = {}
    for source, kind in MOVES:
        run = config(source, world=2)
        engine = make_engine(config(source, world=2, seed=7), device=CPU)
        restore(engine, saved_in(folder / f"{source}-{kind}"))
        save_at(engine, folder / f"{source}-{kind}-{source}", 3)
        found[f"{source} {kind}"] = [take_step(engine, run, step)[1] for step in range(3, 6)]
    return found


def figures(folder: Path) -> Found:
    """Ten steps of every engine in either precision, for the table."""
    world = int(os.environ["WORLD_SIZE"])
    found: Found = {}
    for precision in ("fp32", "bf16"):
        for kind in KINDS:
            run = config(kind, world=world, train__precision=precision)
            engine = make_engine(run, device=CPU)
            name = f"{kind} {precision} {world}"
            found[name] = trained(run, folder / f"{name} 3", engine=engine)["losses"]
            found[name] += [take_step(engine, run, step)[1] for step in range(3, 10)]
            save_at(engine, folder / f"{name} 10", 10)
    return found


def _loop_on_two_ranks(folder: Path) -> Found:
    """The loop, with a clip that only rank 1 has to substitute, and a wish to stop that only rank 1 has."""
    run = config("zero3", world=2)
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
    engine = make_engine(config("plain", world=2), device=CPU)
    if engine.rank == 1:
        engine.save = _no_space  # type: ignore[method-assign]
    try:
        save_at(engine, folder, 1)
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


def _no_space(folder: Path) -> None:
    raise OSError(28, "No space left on device")


JOBS: dict[str, Callable[[Path], Found]] = {
    job.__name__: job for job in (two_ranks, one_rank, two_ranks_again, figures)
}


def main(job: str, folder: Path) -> None:
    torch.set_num_threads(1)
    plain.PLAIN_BUCKET = 5000  # several buckets, also in a tiny model
    zero.PERSISTENT = PERSISTENT
    torch.save(JOBS[job](folder), folder / f"{job}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from made_clips import made_clips, made_spec, made_stream

from rayjepa.config import RunConfig, resolve
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import Failure
from rayjepa.data.tape import micro_batch_ids
from rayjepa.model import build
from rayjepa.train.checkpoint import restart_point, restore, save
from rayjepa.train.history import History, begin_attempt, coverage, read_history
from rayjepa.train.ledger import Ledger
from rayjepa.train.loop import train
from rayjepa.train.meter import Metrics
from rayjepa.train.plain import PlainEngine
from rayjepa.train.schedules import learning_rate


def _run(**overrides: object) -> RunConfig:
    base = {"cluster.workers": 0, "train.accumulation": 2, "train.steps": 6, "report.every_steps": 2}
    return resolve("tiny", base | {key.replace("__", "."): value for key, value in overrides.items()})


def _engine(run: RunConfig) -> PlainEngine:
    return PlainEngine(run, build(run), device=torch.device("cpu"))


def _nothing(metrics: Metrics, folder: Path | None) -> None:
    pass


class _Spoiling(PlainEngine):
    """A plain engine that turns the loss of given steps into NaN."""

    bad: frozenset[int] = frozenset()
    seen = 0

    def backward(self, loss: torch.Tensor) -> None:
        step = self.seen // self.run.train.accumulation
        self.seen += 1
        super().backward(loss * float("nan") if step in self.bad else loss)


def _failing(run: RunConfig, bad: set[int], *, until: int = 1) -> Iterator[ClipBatch]:
    """A stream in which some samples are substitutes."""
    for clips in made_stream(run):
        ids = [i for i in clips.index.tolist() if i in bad]
        specs = tuple(made_spec(run, s.index, until if s.index in bad else 0) for s in clips.specs)
        failures = tuple(
            Failure(
                index=i,
                attempt=a,
                video=i,
                uri=f"broken/{i}.mp4",
                stage="decode",
                kind="content",
                reason="no frames",
            )
            for i in ids
            for a in range(until)
        )
        yield dataclasses.replace(clips, specs=specs, failures=failures)


def test_a_run_is_a_list_of_batches_an_engine_and_a_lambda() -> None:
    run = _run()
    seen: list[Metrics] = []
    finished = train(
        _engine(run),
        list(made_stream(run)),
        run,
        start=0,
        report=lambda metrics, _: seen.append(metrics),
    )
    assert finished == 6
    assert [metrics["step"] for metrics in seen] == [1, 3, 5]
    assert {"loss/latent", "optim/lr", "optim/grad_norm", "ema/momentum", "rate/clips_per_s", "data/wait_ms"} <= set(
        seen[0]
    )
    assert seen[2]["optim/lr"] == learning_rate(run, 5)


def test_reported_losses_are_means_over_the_interval() -> None:
    each, pairs = [], []
    for every, seen in ((1, each), (2, pairs)):
        run = _run(report__every_steps=every)
        train(
            _engine(run),
            made_stream(run),
            run,
            start=0,
            report=lambda m, _, seen=seen: seen.append(m["loss/latent"]),
        )
    assert pairs == pytest.approx([(a + b) / 2 for a, b in zip(each[::2], each[1::2], strict=True)], rel=1e-6)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
def test_the_ranks_micro_batches_partition_every_step(world: int, accumulation: int) -> None:
    run = _run(train__accumulation=accumulation)
    ids = [
        i
        for micro in range(accumulation)
        for rank in range(world)
        for i in micro_batch_ids(run, world=world, rank=rank, step=3, micro=micro)
    ]
    assert ids == list(range(12, 16))


def test_a_world_that_does_not_divide_the_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.clips=4 is not a multiple of 3 rank"):
        micro_batch_ids(_run(), world=3, rank=0, step=0, micro=0)


def test_a_stream_that_is_not_the_tape_stops_the_run() -> None:
    run = _run()
    batches = list(made_stream(run))
    batches[3], batches[2] = batches[2], batches[3]
    with pytest.raises(RuntimeError, match=r"step 1, rank 0 of 1, micro-batch 0: .* samples \[6, 7\]; .* \[4, 5\]"):
        train(_engine(run), batches, run, start=0, report=_nothing)


def test_a_stream_that_ends_early_stops_the_run() -> None:
    run = _run()
    with pytest.raises(RuntimeError, match="the stream ended; the tape has samples 10 to 11 here"):
        train(_engine(run), list(made_stream(run))[:5], run, start=0, report=_nothing)


def test_the_history_holds_every_sample_and_every_metric(tmp_path: Path) -> None:
    run = _run(train__steps=5)
    begin_attempt(tmp_path, owner="me", world=1)
    history = History(tmp_path, attempt=1)
    train(_engine(run), made_stream(run), run, start=0, report=_nothing, history=history)
    assert coverage(tmp_path, run.samples) == ([], [])
    lines = read_history(tmp_path).of("step")
    assert [(x["step"], x["steps"], x["trained"]) for x in lines] == [
        (1, 2, [[0, 8]]),
        (3, 2, [[8, 16]]),
        (4, 1, [[16, 20]]),
    ]
    assert all(x["loss/latent"] > 0 for x in lines)


def test_a_refused_step_stops_the_run_with_its_samples_and_a_remedy(tmp_path: Path) -> None:
    run = _run()
    engine = _Spoiling(run, build(run), device=torch.device("cpu"))
    engine.bad = frozenset({2})
    begin_attempt(tmp_path, owner="me", world=1)
    history = History(tmp_path, attempt=1)
    with pytest.raises(RuntimeError) as caught:
        train(engine, made_stream(run), run, start=0, report=_nothing, history=history)
    message = str(caught.value)
    for part in ("step 2: loss is nan", "8 to 11", "rank 0 had 8 made/8-0.mp4", "optim.max_refused=0", "optim.lr"):
        assert part in message
    (line,) = read_history(tmp_path).of("refused")
    assert (line["step"], line["reason"], line["samples"]) == (2, "loss is nan", [[8, 12]])


def test_refused_steps_within_the_bound_are_passed_over_and_schedules_wait(tmp_path: Path) -> None:
    run = _run(optim__max_refused=2, optim__warmup_steps=5, report__every_steps=1)
    engine = _Spoiling(run, build(run), device=torch.device("cpu"))
    engine.bad = frozenset({1, 3})
    begin_attempt(tmp_path, owner="me", world=1)
    history, ledger = History(tmp_path, attempt=1), Ledger()
    assert train(engine, made_stream(run), run, start=0, report=_nothing, history=history, ledger=ledger) == 6
    lines = read_history(tmp_path).of("step")
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    assert [line["optim/lr"] for line in lines] == [learning_rate(run, progress) for progress in range(4)]
    assert [entry["step"] for entry in ledger.refused] == [1, 3]
    assert coverage(tmp_path, run.samples) == ([], [])


def test_substitutes_reach_history_and_ledger(tmp_path: Path) -> None:
    run = _run()
    begin_attempt(tmp_path, owner="me", world=1)
    history, ledger = History(tmp_path, attempt=1), Ledger()
    train(_engine(run), _failing(run, {5}, until=2), run, start=0, report=_nothing, history=history, ledger=ledger)
    lines = read_history(tmp_path).of("failure")
    assert [(x["index"], x["attempt"], x["step"], x["failure_kind"], x["substitute"]) for x in lines] == [
        (5, 0, 1, "content", "made/5-2.mp4"),
        (5, 1, 1, "content", "made/5-2.mp4"),
    ]
    assert [entry["uri"] for entry in ledger.failures] == ["broken/5.mp4"] * 2


def test_bad_data_stops_the_run_with_a_summary() -> None:
    run = _run(train__steps=30)
    with pytest.raises(RuntimeError, match=r"20 of 40 samples could not .*=0\.2: 20 x content in decode: no frames"):
        train(_engine(run), _failing(run, set(range(0, 120, 2))), run, start=0, report=_nothing)


def test_health_is_examined_first_last_and_when_due(tmp_path: Path) -> None:
    run = _run(train__steps=5, health__every_steps=2)
    seen: list[int] = []

    def health(finished: int) -> dict[str, float]:
        seen.append(finished)
        return {"collapse/rankme": 3.5}

    begin_attempt(tmp_path, owner="me", world=1)
    history = History(tmp_path, attempt=1)
    train(_engine(run), made_stream(run), run, start=0, report=_nothing, history=history, health=health)
    assert seen == [0, 2, 4, 5]
    assert [(x["step"], x["collapse/rankme"]) for x in read_history(tmp_path).of("health")] == [(s, 3.5) for s in seen]


def test_a_stopped_and_resumed_run_equals_one_that_ran_through(tmp_path: Path) -> None:
    run = _run(checkpoint__every_steps=100)
    asked = iter([False, False, True])
    through = _engine(run)
    train(through, made_stream(run), run, start=0, report=_nothing)
    folders: list[Path | None] = []
    ended: PlainEngine | None = None
    for stop in (lambda: next(asked), lambda: False):
        attempt, engine, ledger = begin_attempt(tmp_path, owner="me", world=1), _engine(run), Ledger()
        if attempt.checkpoint is not None:
            state = restore(engine, tmp_path / attempt.checkpoint)
            ledger = Ledger(state.refused, state.ledger)
        number = attempt.attempt
        train(
            engine,
            made_stream(run, start=attempt.start),
            run,
            start=attempt.start,
            report=lambda _, folder: folders.append(folder),
            history=History(tmp_path, attempt=number),
            save=lambda finished, ledger, engine=engine, number=number: save(
                engine, tmp_path, run, attempt=number, finished=finished, ledger=ledger, fingerprint=""
            ),
            stop=stop,
            ledger=ledger,
        )
        ended = engine
    names = [folder.name for folder in folders if folder is not None]
    assert names == ["step-00000003-attempt-0001", "step-00000006-attempt-0002"]
    assert restart_point(tmp_path) == folders[-1]
    assert coverage(tmp_path, run.samples) == ([], [])
    assert ended is not None
    for ours, theirs in zip(ended.jepa.parameters(), through.jepa.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(ended.target.parameters(), through.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_metrics_are_on_disk_when_a_checkpoint_is_written(tmp_path: Path) -> None:
    run = _run(checkpoint__every_steps=3, report__every_steps=100)
    begin_attempt(tmp_path, owner="me", world=1)
    covered: list[tuple[int, list[list[int]]]] = []

    def saved(*, finished: int, ledger: Ledger) -> Path:
        covered.append((finished, coverage(tmp_path, finished * run.train.clips)[0]))
        return tmp_path

    train(
        _engine(run), made_stream(run), run, start=0, report=_nothing, history=History(tmp_path, attempt=1), save=saved
    )
    assert covered == [(3, []), (6, [])]


def test_a_run_that_is_finished_does_nothing() -> None:
    run = _run()
    assert train(_engine(run), [made_clips(run, range(4))], run, start=6, report=_nothing) == 6

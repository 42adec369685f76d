"""Phases: one run, its schedules and clips change at a step; weights, moments, target and tape go on."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_clips import made_clips
from phased import CLIPS, COOL_STEPS, MAIN_STEPS, STEPS, run_of
from safetensors.numpy import load_file

from rayjepa.config import RunConfig, phase_at, phases_of, resolve
from rayjepa.data import synthetic
from rayjepa.data.batch import ClipBatch
from rayjepa.data.decoders import Decoders
from rayjepa.data.index import indexing
from rayjepa.data.manifest import Manifest
from rayjepa.data.tape import micro_batch_ids
from rayjepa.model import build
from rayjepa.train import folder
from rayjepa.train.checkpoint import restore
from rayjepa.train.history import begin_attempt, coverage, read_history
from rayjepa.train.ledger import Ledger
from rayjepa.train.loop import train
from rayjepa.train.outcome import Outcome, goes_on
from rayjepa.train.plain import PlainEngine
from rayjepa.train.restart import folder_name, restart_point
from rayjepa.train.schedules import learning_rate
from rayjepa.train.session import alone, local_batches, take_part, tape_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    source = synthetic.make(tmp_path_factory.mktemp("videos"), 6)
    return indexing.index(str(source), cfg=run_of().data)


def begun(videos: Manifest, home: Path) -> tuple[RunConfig, Path]:
    """A new run's configuration and folder."""
    run_dir, run = folder.create(run_of(out=str(home), name="run"), videos, preset="tiny")
    return run, run_dir


@pytest.fixture(scope="module")
def through(videos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through both phases undisturbed."""
    run, run_dir = begun(videos, tmp_path_factory.mktemp("through"))
    outcome = alone(run, run_dir, owner=folder.claim(run_dir))
    assert (outcome.finished, outcome.reason) == (STEPS, "")
    return run_dir


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, by kind and name."""
    return {key: data for shard in checkpoint.glob("shard-*") for key, data in load_file(shard).items()}


def assert_equal(run_dir: Path, other: Path) -> None:
    """Same losses, and bit-equal weights, moments and target."""
    assert coverage(run_dir, STEPS * CLIPS) == ([], [])
    mine, theirs = ([(x["step"], x["loss/latent"]) for x in read_history(d).of("step")] for d in (run_dir, other))
    assert sorted(mine) == theirs
    last = [restart_point(d) for d in (run_dir, other)]
    assert None not in last
    a, b = (tensors(path) for path in last if path is not None)
    assert a.keys() == b.keys()
    assert [key for key in a if not np.array_equal(a[key], b[key])] == []
    assert {key.split("|")[0] for key in a} >= {"master", "exp_avg", "exp_avg_sq", "step", "target"}


def test_one_run_goes_through_both_phases_with_their_schedules_and_clips(through: Path) -> None:
    main, cool = phases_of(run_of())
    table = read_history(through)
    assert coverage(through, STEPS * CLIPS) == ([], [])
    assert [(a.start, a.checkpoint is None) for a in table.attempts.values()] == [(0, True), (MAIN_STEPS, False)]
    rates = [learning_rate(main.run, step) for step in range(MAIN_STEPS)]
    rates += [learning_rate(cool.run, step) for step in range(COOL_STEPS)]
    assert [line["optim/lr"] for line in table.of("step")] == rates
    examined = [(line["step"], line["phase"]) for line in table.of("health")]
    assert examined == [(0, "main"), (MAIN_STEPS, "main"), (MAIN_STEPS, "cool"), (STEPS, "cool")]
    floors = {line["phase"]: line["collapse/rankme_floor"] for line in table.of("health")}
    assert floors["main"] != floors["cool"], "the phases have the same held-out clips"
    assert all(resolve(str(p / "run.yaml"), {}).phases for p in (through / "checkpoints").iterdir())


def test_weights_moments_and_target_go_on_bit_for_bit_across_the_boundary(through: Path, tmp_path: Path) -> None:
    boundary = through / "checkpoints" / folder_name(finished=MAIN_STEPS, attempt=1)
    cool = phase_at(run_of(), MAIN_STEPS).run
    engine = PlainEngine(cool, build(cool), device=CPU)
    restore(engine, boundary)
    engine.save(tmp_path)
    before, after = tensors(boundary), tensors(tmp_path)
    assert before.keys() == after.keys()
    assert [key for key in before if not np.array_equal(before[key], after[key])] == []
    counts = {float(value[0]) for key, value in before.items() if key.startswith("step|")}
    assert counts == {float(MAIN_STEPS)}, "the moments are not those of a run of as many steps"


@pytest.mark.slow
def test_a_run_stopped_at_the_boundary_and_killed_in_the_second_phase_ends_as_if_it_had_not_been(
    through: Path, videos: Manifest, tmp_path: Path
) -> None:
    run, run_dir = begun(videos, tmp_path)
    for finished in range(1, MAIN_STEPS + 1):  # a run that finds the file takes one step
        owner = folder.claim(run_dir)
        (run_dir / "stop").touch()
        assert alone(run, run_dir, owner=owner).finished == finished
    owner = folder.claim(run_dir)
    attempt = begin_attempt(run_dir, owner=owner, world=1)
    phase = phase_at(run, attempt.start)
    tape = tape_of(phase, run_dir)

    def dying(clips: Iterator[ClipBatch]) -> Iterator[ClipBatch]:
        yield from itertools.islice(clips, 3)
        raise KeyboardInterrupt

    with Decoders(phase.run) as decoders:
        clips = dying(local_batches(phase.run, tape, decoders, start=attempt.start))
        with pytest.raises(KeyboardInterrupt):
            take_part(run, run_dir, attempt, clips, tape=tape)
    alone(run, run_dir, owner=owner)
    table = read_history(run_dir)
    assert [a.start for a in table.attempts.values()] == [0, 1, MAIN_STEPS, MAIN_STEPS]
    assert [line["step"] for line in table.of("step", undone=True)] == [MAIN_STEPS]
    assert [line["step"] for line in table.of("health")] == [0, MAIN_STEPS, MAIN_STEPS, STEPS]
    assert_equal(run_dir, through)


def test_refused_steps_of_one_phase_count_in_no_other() -> None:
    run = run_of(optim__max_refused=1)
    cool = phase_at(run, MAIN_STEPS)
    engine = PlainEngine(cool.run, build(cool.run), device=CPU)
    engine.guard.max_norm = 1e-9  # refuses every step
    ledger, rates = Ledger(refused=[{"step": 1, "reason": "loss is nan"}]), []
    steps = range(cool.first, cool.stop)
    batches = (
        made_clips(cool.run, micro_batch_ids(cool.run, world=1, rank=0, step=step, micro=micro))
        for step in steps
        for micro in range(cool.run.train.accumulation)
    )
    with pytest.raises(RuntimeError, match=r"step 3: .* with optim\.max_refused=1 and 2 refused\. Its samples are 12"):
        train(
            engine,
            batches,
            cool.run,
            start=cool.first,
            first=cool.first,
            report=lambda metrics, _: rates.append(metrics),
            ledger=ledger,
        )
    assert [entry["step"] for entry in ledger.refused] == [1, 2, 3]


def test_a_driver_goes_on_after_a_phase_and_only_then(tmp_path: Path) -> None:
    run = run_of()
    ends = [(n, goes_on(run, tmp_path, Outcome(finished=n, checkpoint=None))) for n in range(STEPS + 1)]
    assert ends == [(0, False), (1, False), (2, True), (3, False), (4, False)]
    assert not goes_on(run, tmp_path, Outcome(finished=MAIN_STEPS, checkpoint=None, reason="bad data"))
    (tmp_path / "stop").touch()
    assert not goes_on(run, tmp_path, Outcome(finished=MAIN_STEPS, checkpoint=None))

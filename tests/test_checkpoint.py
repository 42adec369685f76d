import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from made_clips import differing, snapshot, take_step
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayjepa.config import RunConfig, resolve
from rayjepa.model import build
from rayjepa.train.attempts import record_attempt
from rayjepa.train.checkpoint import finished_steps, prune, read_state, restart_point, restore, save
from rayjepa.train.history import begin_attempt
from rayjepa.train.ledger import Ledger
from rayjepa.train.pieces import Piece, read_index, read_pieces, whole, write_shard
from rayjepa.train.plain import PlainEngine
from rayjepa.train.restart import MARKER, folder_name

CPU = torch.device("cpu")
RUN = resolve("tiny", {"cluster.workers": 0, "checkpoint.keep": 2})


def _engine(run: RunConfig = RUN, *, seed: int = 0) -> PlainEngine:
    return PlainEngine(run, build(resolve("tiny", {"seed": seed, "cluster.workers": 0})), device=CPU)


def _steps(engine: PlainEngine, steps: range) -> list[float]:
    return [take_step(engine, RUN, step)[1] for step in steps]


def _save(engine: PlainEngine, run_dir: Path, finished: int, *, attempt: int = 1, ledger: Ledger | None = None) -> Path:
    return save(
        engine,
        run_dir,
        RUN,
        attempt=attempt,
        finished=finished,
        ledger=ledger or Ledger(),
        fingerprint="f00d",
    )


def _made(run_dir: Path, finished: int, attempt: int, *, torn: bool = False) -> Path:
    """A checkpoint folder without tensors."""
    folder = run_dir / "checkpoints" / folder_name(finished=finished, attempt=attempt)
    folder.mkdir(parents=True)
    state = {"finished": finished, "attempt": attempt, "world": 1, "fingerprint": ""}
    (folder / "state.json").write_text(json.dumps(state))
    if not torn:
        (folder / MARKER).write_text("{}")
    return folder


def _began(run_dir: Path, checkpoint: Path | None, start: int = 0) -> None:
    record_attempt(run_dir, owner="me", checkpoint=checkpoint, start=start, world=1)


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    engine, other = _engine(), _engine(seed=7)
    _steps(engine, range(3))
    ledger = Ledger(refused=[{"step": 1, "reason": "loss is nan"}], failures=[{"index": 3}])
    folder = _save(engine, tmp_path, 3, ledger=ledger)
    state = restore(other, folder, fingerprint="f00d")
    assert (state.finished, state.attempt, state.world) == (3, 1, 1)
    assert (state.refused, state.ledger) == (ledger.refused, ledger.failures)
    assert "torch" in state.versions
    assert differing(snapshot(engine), snapshot(other)) == []
    assert _steps(other, range(3, 6)) == _steps(engine, range(3, 6))
    assert differing(snapshot(engine), snapshot(other)) == []


def test_the_folder_holds_what_the_format_says(tmp_path: Path) -> None:
    folder = _save(_engine(), tmp_path, 3, attempt=2)
    assert folder == tmp_path / "checkpoints" / "step-00000003-attempt-0002"
    assert {p.name for p in folder.iterdir()} == {"shard-00000.safetensors", "state.json", "run.yaml", "complete"}
    assert resolve(str(folder / "run.yaml"), {}) == RUN
    with safe_open(folder / "shard-00000.safetensors", framework="pt") as file:
        keys = list(file.keys())
        assert "master|encoder.blocks.0.attn.qkv.weight|0" in keys
        assert "target|blocks.0.attn.qkv.weight|0" in keys
        assert {key.split("|")[0] for key in keys} == {"master", "exp_avg", "exp_avg_sq", "step", "target"}


def test_a_folder_that_an_earlier_write_left_is_replaced(tmp_path: Path) -> None:
    stale = _made(tmp_path, 3, 1, torn=True)
    (stale / "shard-00001.safetensors").write_bytes(b"of a larger world")
    folder = _save(_engine(), tmp_path, 3)
    assert folder == stale
    assert not (folder / "shard-00001.safetensors").exists()
    restore(_engine(seed=1), folder)


def test_a_torn_folder_is_not_read(tmp_path: Path) -> None:
    folder = _save(_engine(), tmp_path, 3)
    (folder / MARKER).unlink()
    with pytest.raises(RuntimeError, match="is torn: it has no complete marker"):
        restore(_engine(), folder)


def test_another_manifest_is_refused(tmp_path: Path) -> None:
    folder = _save(_engine(), tmp_path, 3)
    with pytest.raises(RuntimeError, match="fingerprint f00d, this one has beef"):
        restore(_engine(), folder, fingerprint="beef")


def test_tensors_that_do_not_fit_are_named_in_one_error(tmp_path: Path) -> None:
    folder = _save(_engine(), tmp_path, 3)
    shard = folder / "shard-00000.safetensors"
    with safe_open(shard, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    tensors = load_file(shard)
    del tensors["master|encoder.norm.weight|0"], shapes["master|encoder.norm.weight"]
    tensors["master|encoder.extra|0"], shapes["master|encoder.extra"] = torch.zeros(2), [2]
    shapes["target|norm.bias"] = [2, 12]
    save_file(tensors, shard, metadata={"shapes": json.dumps(shapes)})
    with pytest.raises(RuntimeError) as caught:
        restore(_engine(), folder)
    message = str(caught.value)
    assert "lacks master of encoder.norm.weight" in message
    assert "has master of encoder.extra, which this model has not" in message
    assert "has target of norm.bias with shape [2, 12], here [24]" in message


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = _save(_engine(), tmp_path, 3)
    wider = resolve("tiny", {"model.width": 48, "cluster.workers": 0})
    with pytest.raises(RuntimeError, match="does not fit this model"):
        restore(PlainEngine(wider, build(wider), device=CPU), folder)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    folder = _save(_engine(), tmp_path, 3)
    (folder / "shard-00000.safetensors").write_bytes(b"short")
    with pytest.raises(RuntimeError, match="shard-00000"):
        restore(_engine(), folder)


def _piece(name: str, full: Tensor, start: int, stop: int, *, replicated: bool = False) -> Piece:
    return Piece(
        kind="master",
        name=name,
        shape=tuple(full.shape),
        start=start,
        data=full.view(-1)[start:stop].clone(),
        replicated=replicated,
    )


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("cuts", [[0, 15], [0, 4, 15], [0, 0, 7, 15]])
def test_pieces_cut_anywhere_are_read_back_cut_anywhere(tmp_path: Path, writers: int, cuts: list[int]) -> None:
    odd, one = torch.randn(5, 3), torch.randn(1)
    bounds = [0, 2, 9, 15][: writers + 1]
    bounds[-1] = 15
    for rank in range(writers):
        pieces = [_piece("odd", odd, bounds[rank], bounds[rank + 1]), whole("target", "one", one)]
        write_shard(tmp_path, pieces, rank=rank, world=writers)
    empty = [
        Piece(kind="master", name="odd", shape=(5, 3), start=low, data=torch.zeros(high - low), replicated=False)
        for low, high in pairwise(cuts)
    ]
    copy = torch.zeros(1)
    read_pieces(tmp_path, [*empty, whole("target", "one", copy)])
    assert torch.equal(torch.cat([p.data for p in empty]), odd.view(-1))
    assert torch.equal(copy, one)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 4), (5, 15)], "odd is missing at element 4"),
        ([(0, 6), (5, 15)], "odd is there twice at element 5"),
        ([(0, 4), (4, 14)], "odd ends at element 14 of 15"),
        ([(0, 0), (0, 0)], "odd ends at element 0 of 15"),
    ],
)
def test_a_hole_or_an_overlap_is_found_before_the_marker(
    tmp_path: Path, spans: list[tuple[int, int]], message: str
) -> None:
    odd = torch.randn(5, 3)
    for rank, (low, high) in enumerate(spans):
        write_shard(tmp_path, [_piece("odd", odd, low, high)], rank=rank, world=2)
    with pytest.raises(RuntimeError, match=message):
        read_index(tmp_path, shards=2)


def test_step_counts_that_one_counter_cannot_hold_are_refused(tmp_path: Path) -> None:
    counts = [whole("step", "a", torch.tensor(3.0)), whole("step", "b", torch.tensor(4.0))]
    write_shard(tmp_path, counts, rank=0, world=1)
    shared = torch.zeros(())
    with pytest.raises(RuntimeError, match="a was stepped 3 times and b 4 times"):
        read_pieces(tmp_path, [whole("step", "a", shared), whole("step", "b", shared)])


def test_a_run_without_checkpoints_starts_at_the_beginning(tmp_path: Path) -> None:
    assert restart_point(tmp_path) is None
    _began(tmp_path, None)
    assert restart_point(tmp_path) is None


def test_the_newest_complete_checkpoint_is_the_restart_point(tmp_path: Path) -> None:
    _began(tmp_path, None)
    _made(tmp_path, 4, 1)
    good = _made(tmp_path, 8, 1)
    _made(tmp_path, 12, 1, torn=True)
    assert restart_point(tmp_path) == good
    assert finished_steps(good) == 8


def test_an_attempt_that_wrote_none_leaves_the_one_it_began_from(tmp_path: Path) -> None:
    _began(tmp_path, None)
    origin = _made(tmp_path, 4, 1)
    _began(tmp_path, origin, 4)
    _began(tmp_path, origin, 4)
    assert restart_point(tmp_path) == origin


def test_a_group_that_lives_on_after_it_was_given_up_is_never_chosen(tmp_path: Path) -> None:
    _began(tmp_path, None)
    origin = _made(tmp_path, 4, 1)
    _began(tmp_path, origin, 4)
    _made(tmp_path, 8, 1)
    assert restart_point(tmp_path) == origin
    own = _made(tmp_path, 6, 2)
    assert restart_point(tmp_path) == own


def test_a_group_given_up_before_its_first_checkpoint_is_never_chosen(tmp_path: Path) -> None:
    _began(tmp_path, None)
    _began(tmp_path, None)
    _made(tmp_path, 4, 1)
    assert restart_point(tmp_path) is None


def test_a_checkpoint_that_was_lost_falls_back_along_the_chain(tmp_path: Path) -> None:
    _began(tmp_path, None)
    older, origin = _made(tmp_path, 2, 1), _made(tmp_path, 4, 1)
    _began(tmp_path, origin, 4)
    shutil.rmtree(origin)
    assert restart_point(tmp_path) == older


def test_a_group_that_was_given_up_may_not_write(tmp_path: Path) -> None:
    _began(tmp_path, None)
    _began(tmp_path, None)
    with pytest.raises(RuntimeError, match="attempt 2 has begun, so attempt 1 was given up"):
        _save(_engine(), tmp_path, 4, attempt=1)


def test_saving_keeps_the_newest_few(tmp_path: Path) -> None:
    _began(tmp_path, None)
    engine = _engine()
    for finished in (1, 2, 3, 4):
        _save(engine, tmp_path, finished)
    assert [read_state(p).finished for p in sorted((tmp_path / "checkpoints").iterdir())] == [3, 4]


def test_pruning_spares_the_origin_until_there_is_a_newer_one(tmp_path: Path) -> None:
    _began(tmp_path, None)
    older, origin = _made(tmp_path, 2, 1), _made(tmp_path, 4, 1)
    _began(tmp_path, origin, 4)
    assert prune(tmp_path, keep=1) == [older]
    own = _made(tmp_path, 6, 2)
    assert prune(tmp_path, keep=1) == [origin]
    assert restart_point(tmp_path) == own


def test_pruning_clears_torn_folders_of_the_past_and_what_was_given_up(tmp_path: Path) -> None:
    _began(tmp_path, None)
    origin, torn = _made(tmp_path, 4, 1), _made(tmp_path, 6, 1, torn=True)
    _began(tmp_path, origin, 4)
    given_up = _made(tmp_path, 8, 1)
    own, being_written = _made(tmp_path, 6, 2), _made(tmp_path, 8, 2, torn=True)
    assert set(prune(tmp_path, keep=2)) == {torn, given_up}
    assert {own, origin, being_written} == set((tmp_path / "checkpoints").iterdir())


def test_an_attempt_begins_from_the_restart_point(tmp_path: Path) -> None:
    begin_attempt(tmp_path, owner="me", world=1)
    folder = _made(tmp_path, 4, 1)
    second = begin_attempt(tmp_path, owner="me", world=3)
    assert (second.attempt, second.start, second.world) == (2, 4, 3)
    assert second.checkpoint == folder.relative_to(tmp_path).as_posix()

"""How the tape is cut into blocks for a stream, what a block of clips holds, and how ranks take it apart again."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tape import TEN, run_of

from rayjepa.config import block_of, prefetch_of, resolve
from rayjepa.data import synthetic
from rayjepa.data.blocks import Blocks, Timing
from rayjepa.data.decoders import Decoders
from rayjepa.data.index.indexing import index
from rayjepa.data.tape import Tape, micro_batch_ids
from rayjepa.on_ray.actor import block_of_clips
from rayjepa.on_ray.placement import Node
from rayjepa.on_ray.store import refuse_too_small
from rayjepa.on_ray.stream import batches, micro_batches


@given(
    ranks=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    steps=st.integers(1, 9),
    block=st.integers(1, 7),
    data=st.data(),
)
def test_a_rank_gets_its_micro_batches_in_order_whatever_the_size_of_a_block(
    ranks: int, accumulation: int, steps: int, block: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, steps))
    sizes = {"train.clips": 2 * ranks * accumulation, "train.accumulation": accumulation, "train.steps": steps}
    run = resolve("tiny", {**sizes, "cluster.workers": ranks, "cluster.block": block})
    blocks = Blocks.of(run, start=start * run.train.clips)
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for number in range(len(blocks)):
        samples = blocks.samples(number)
        assert samples.shape[1] == run.micro_batch
        assert 1 <= len(samples) <= block
        dealt[number % ranks] += samples.ravel().tolist()
    for rank in range(ranks):
        own = [
            micro_batch_ids(run, world=ranks, rank=rank, step=step, micro=micro)
            for step in range(start, steps)
            for micro in range(accumulation)
        ]
        assert dealt[rank] == [i for ids in own for i in ids]


def test_blocks_begin_with_a_step_and_end_with_the_run() -> None:
    run = resolve("tiny", {})
    with pytest.raises(ValueError, match=r"start=3 does not begin a step of train.clips=4 samples"):
        Blocks.of(run, start=3)
    blocks = Blocks.of(run, start=8, first=4)
    assert max(blocks.samples(k).max() for k in range(len(blocks))) == 4 + run.samples - 1
    with pytest.raises(IndexError, match=f"block {len(blocks)} is not one of {len(blocks)}"):
        blocks.samples(len(blocks))


def test_small_micro_batches_travel_together_and_large_ones_alone() -> None:
    assert block_of(resolve("tiny", {})) == 16
    assert block_of(resolve("demo", {})) == 6  # of 8 clips of 98 kB
    assert block_of(resolve("vjepa2-l16", {"data.videos": "/v"})) == 1
    assert block_of(resolve("demo", {"cluster.block": 30})) == 30
    assert block_of(resolve("demo", {"cluster.object_store_gib": 0.1})) == 2  # room for three to each rank
    assert prefetch_of(resolve("demo", {})) == 60
    assert prefetch_of(resolve("tiny", {})) == 64
    assert prefetch_of(resolve("vjepa2-l16", {"data.videos": "/v"})) == 1


@pytest.mark.parametrize("workers", [1, 2, 8, 16])
@pytest.mark.parametrize("gib", [0.2, 0.5, 4.0])
@pytest.mark.parametrize("size_px", [64, 128])
def test_what_ranks_hold_ready_by_default_fits_into_the_store(workers: int, gib: float, size_px: int) -> None:
    sizes = {"cluster.workers": workers, "train.clips": 4 * workers, "cluster.object_store_gib": gib}
    run = resolve("demo", {**sizes, "data.size_px": size_px})
    node = Node(total={"object_store_memory": gib * 2**30}, free={}, labels={})
    refuse_too_small(run, [node])  # never stands still
    with pytest.raises(RuntimeError, match=r"it would stand still\. Raise cluster\.object_store_gib"):
        refuse_too_small(resolve("demo", {**sizes, "cluster.prefetch": 10_000}), [node])


# ---------------------------------------------------------------- clips in a block


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """Two streams, of clips of two sizes, a step of each in turn."""
    videos = synthetic.make(tmp_path_factory.mktemp("videos"), 4)
    streams = [{"name": "long", "weight": 1, "set": {}}, {"name": "short", "weight": 1, "set": {"data.frames": 2}}]
    sizes = {"train.clips": 8, "train.accumulation": 4, "cluster.workers": 1, "data.holdout": 0}
    run = resolve("tiny", {**sizes, "streams": streams, "train.steps": 2})
    return Tape(run, index(str(videos), cfg=run.data, processes=1))


def test_a_block_of_several_streams_comes_apart_as_it_was_decoded(tape: Tape) -> None:
    samples = Blocks.of(tape.run, start=0).samples(0)
    timing = Timing(decode_s=1.0, idle_s=0.25, cpu_s=0.5, read_s=0.1, read_bytes=1e6, actor=float(2**53 - 1))
    with Decoders(tape.run) as decoders:
        decoded = [decoders.clips([tape.spec(int(i)) for i in row], tape.spec) for row in samples]
    assert len({part.pixels.shape[1] for part in decoded}) == 2
    found = list(micro_batches(block_of_clips(samples, decoded, timing), tape, micro_batch=tape.run.micro_batch))
    assert len(found) == len(decoded) == 8
    for batch, part, row in zip(found, decoded, samples, strict=True):
        assert batch.index.tolist() == row.tolist()
        assert batch.specs == part.specs
        np.testing.assert_array_equal(batch.pixels.numpy(), part.pixels)
        np.testing.assert_array_equal(batch.layout.numpy(), part.layout)
        assert batch.timing is not None
        assert batch.timing.actor == timing.actor
    for place, spent in enumerate(timing[:-1]):
        assert sum(batch.timing[place] for batch in found if batch.timing) == pytest.approx(spent)


def _block(run_tape: Tape, first: int) -> dict[str, np.ndarray]:
    index = np.arange(first, first + 2)
    return {
        "index": index,
        "attempt": np.zeros(2, np.int64),
        "pixels": np.zeros((2, run_tape.spec(first).nbytes), np.uint8),
        "layout": np.zeros((2, 5), np.int32),
        "failures": np.array(["", ""], object),
        "timing": np.zeros((2, 6)),
    }


def test_what_fails_while_blocks_are_read_reaches_the_loop() -> None:
    tape = Tape(run_of(), TEN)

    def torn() -> Iterator[dict[str, np.ndarray]]:
        yield _block(tape, 0)
        raise OSError("the store is gone")

    taken = batches(torn(), tape, micro_batch=2)
    assert next(taken).index.tolist() == [0, 1]
    with pytest.raises(OSError, match="the store is gone"):
        next(taken)


def test_a_loop_that_stops_early_leaves_no_reader_behind() -> None:
    tape = Tape(run_of(), TEN)
    before = threading.active_count()
    taken = batches((_block(tape, 2 * k) for k in range(100)), tape, micro_batch=2)
    assert next(taken).index.tolist() == [0, 1]
    taken.close()
    until = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_importing_the_decode_actor_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys, rayjepa.on_ray.actor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=300).returncode == 0

"""The tape through Ray Data: whole, in order, whatever a clip does; beside somebody else's Ray."""

import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayjepa.config import RunConfig, resolve
from rayjepa.data import indexing, manifest, synthetic
from rayjepa.data.tape import Tape
from rayjepa.train.history import coverage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 400


@dataclasses.dataclass(frozen=True)
class Site:
    run: RunConfig
    manifest: Path
    videos: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cluster of this module, and 24 videos of which one kills its decoder and one never returns."""
    from rayjepa.on_ray.cluster import cluster

    home = tmp_path_factory.mktemp("stream")
    videos = synthetic.make(home, 24)
    options = {"data.decode_cpu_s": 4, "data.decode_wall_s": 8, "data.retries": 0, "data.holdout": 0, "train.steps": 12}
    run = resolve("tiny", {"data.videos": str(videos), "cluster.decoders": 2, **options})
    table = indexing.index(str(videos), cfg=run.data)
    manifest.write(table, home / "m.parquet")
    bad = [Path(table.uri(int(row))).name for row in table.train_rows[:2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAYJEPA_POISON", f'{{"{bad[0]}": "segv", "{bad[1]}": "hang"}}')
        with cluster(run):
            yield Site(run, home / "m.parquet", videos)


def slow(pause_s: float) -> type:
    """A decoder that returns what it was asked for, after a pause of its own. Local, so that Ray ships it by value."""
    from rayjepa.on_ray.actor import ids_of

    class Slow:
        def __init__(self, run: RunConfig, _: str, start: int, first: int) -> None:
            self.start, self.size, self.draw = start, run.micro_batch, random.Random(os.getpid())

        def __call__(self, rows: dict) -> dict:
            time.sleep(self.draw.random() * pause_s)
            index = ids_of(rows, start=self.start, size=self.size)
            return {"index": index, "pixels": np.zeros((self.size, 8), np.uint8)}

    return Slow


def consumed(run: RunConfig, path: Path, *, start: int, decoder: object) -> list[list[dict]]:
    """What each rank is given, block by block."""
    import ray

    from rayjepa.on_ray.stream import stream

    @ray.remote(num_cpus=0)
    def take(split) -> list[dict]:
        return [
            {k: v for k, v in block.items() if k != "pixels"} | {"sum": block["pixels"].astype(np.int64).sum(axis=1)}
            for block in split.iter_batches(batch_size=run.micro_batch, batch_format="numpy")
        ]

    splits = stream(run, manifest_path=path, start=start, decoder=decoder).streaming_split(run.ranks, equal=True)
    return ray.get([take.remote(split) for split in splits], timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("workers", "clips", "steps", "pause_s"),
    [(2, 8, 40, 0.05), (4, 8, 40, 0.05), (2, 6, 700, 0.0)],
    ids=["two", "four", "more than a read task holds"],
)
def test_blocks_are_dealt_to_the_ranks_in_turn_from_any_step(
    site: Site, workers: int, clips: int, steps: int, pause_s: float
) -> None:
    sizes = {"train.steps": steps, "train.clips": clips, "cluster.workers": workers, "cluster.decoders": 3}
    run = resolve("tiny", sizes)
    start, size = 5 * run.train.clips, run.micro_batch
    ranks = consumed(run, site.manifest, start=start, decoder=slow(pause_s))
    assert len(ranks) == workers
    for rank, blocks in enumerate(ranks):
        firsts = range(start + rank * size, run.samples, workers * size)
        assert [list(b["index"]) for b in blocks] == [list(range(f, f + size)) for f in firsts]


def test_a_crashing_and_a_hanging_clip_are_replaced_and_nothing_shifts(site: Site) -> None:
    from rayjepa.on_ray.actor import DecodeActor
    from rayjepa.on_ray.stream import batches

    table = manifest.read(site.manifest)
    tape = Tape(site.run, table)
    bad = {int(row) for row in table.train_rows[:2]}
    asked = [tape.spec(i) for i in range(site.run.samples)]
    hit = {spec.index for spec in asked if spec.video in bad}
    assert len(hit) >= 2, "the tape never draws the bad videos; choose another seed"
    ranks = consumed(site.run, site.manifest, start=0, decoder=DecodeActor)
    seen: list[int] = []
    for blocks in ranks:
        filled = [{**b, "pixels": np.zeros((len(b["index"]), asked[0].nbytes), np.uint8)} for b in blocks]
        for block, batch in zip(blocks, batches(filled, tape), strict=True):
            seen += batch.index.tolist()
            assert all(total > 0 for total in block["sum"])
            for spec in batch.specs:
                assert (spec.attempt > 0) == (spec.index in hit)
                assert spec.video not in bad
            kinds = {f.index: f.kind for f in batch.failures}
            assert set(kinds) == set(batch.index.tolist()) & hit
            assert set(kinds.values()) <= {"crash", "deadline"}
    assert sorted(seen) == list(range(site.run.samples))


def test_an_embedded_run_beside_somebody_elses_ray_leaves_it_alone(site: Site, tmp_path: Path) -> None:
    import ray

    before = {n["NodeID"] for n in ray.nodes()}
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY")}
    words = ["--preset", "tiny", f"data.videos={site.videos}", f"out={tmp_path}", "name=mine", "cluster.workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "rayjepa.cli", "pretrain", *words, "train.steps=3"],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert coverage(tmp_path / "mine", 12) == ([], [])
    assert {n["NodeID"] for n in ray.nodes() if n["Alive"]} == before
    assert ray.get(ray.put(1)) == 1


def test_a_group_that_the_cluster_cannot_hold_is_refused_with_the_numbers(site: Site) -> None:
    from rayjepa.on_ray.cluster import _check_room

    large = resolve("tiny", {"cluster.workers": 4, "cluster.decoders": 40})
    with pytest.raises(RuntimeError, match=r"the cluster has 5 CPUs and the run needs 45"):
        _check_room(large)

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
from rayjepa.data import manifest, synthetic
from rayjepa.data.index import indexing
from rayjepa.data.tape import Tape, micro_batch_ids
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


def slow(pause_s: float, nbytes: int = 8) -> type:
    """A decoder that returns what it was asked for, after a pause of its own. Local, so that Ray ships it by value."""
    from rayjepa.data.blocks import Blocks
    from rayjepa.on_ray.actor import number_of

    class Slow:
        def __init__(self, run: RunConfig, _: str, start: int, first: int) -> None:
            self.blocks, self.draw = Blocks.of(run, start=start, first=first), random.Random(os.getpid())

        def __call__(self, rows: dict) -> dict:
            time.sleep(self.draw.random() * pause_s)
            index = self.blocks.samples(number_of(rows)).ravel()
            return {"index": index, "pixels": np.zeros((len(index), nbytes), np.uint8)}

    return Slow


def consumed(run: RunConfig, path: Path, *, start: int, decoder: object) -> list[list[dict]]:
    """What each rank is given, block by block."""
    import ray

    from rayjepa.on_ray.stream import stream, taken

    @ray.remote(num_cpus=0)
    def take(split) -> list[dict]:
        return [
            {k: v for k, v in block.items() if k != "pixels"} | {"sum": block["pixels"].astype(np.int64).sum(axis=1)}
            for block in taken(split, run)
        ]

    splits = stream(run, manifest_path=path, start=start, decoder=decoder).streaming_split(run.ranks, equal=True)
    return ray.get([take.remote(split) for split in splits], timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("workers", "clips", "steps", "how"),
    [(2, 8, 40, (3, 0.05)), (4, 8, 40, (16, 0.05)), (2, 6, 700, (1, 0.0))],
    ids=["two", "four", "more than a read task holds"],
)
def test_blocks_are_dealt_to_the_ranks_in_turn_from_any_step(
    site: Site, workers: int, clips: int, steps: int, how: tuple[int, float]
) -> None:
    block, pause_s = how
    sizes = {"train.steps": steps, "train.clips": clips, "cluster.workers": workers, "cluster.block": block}
    run = resolve("tiny", {**sizes, "train.accumulation": 1, "cluster.decoders": 2, "cluster.max_decoders": 3})
    start = 5 * run.train.clips
    ranks = consumed(run, site.manifest, start=start, decoder=slow(pause_s))
    assert len(ranks) == workers
    for rank, blocks in enumerate(ranks):
        own = [micro_batch_ids(run, world=workers, rank=rank, step=step, micro=0) for step in range(5, steps)]
        assert [i for b in blocks for i in b["index"]] == [i for ids in own for i in ids]
        assert {len(b["index"]) for b in blocks[:-1]} <= {block * run.micro_batch}


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
        assert all(total > 0 for block in blocks for total in block["sum"])
        for batch in batches(filled, tape, micro_batch=site.run.micro_batch):
            seen += batch.index.tolist()
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


def test_a_small_object_store_neither_spills_nor_stands_still_while_trainers_are_slow(site: Site) -> None:
    """205 MiB of store, 900 MiB of clips, decoders that cost nothing; eight ranks that fill what they hold ready."""
    import ray
    from ray._private.internal_api import node_stats

    from rayjepa.on_ray.stream import stream, taken

    sizes = {"train.steps": 300, "train.clips": 32, "data.size_px": 64, "data.frames": 16, "cluster.workers": 8}
    run = resolve("tiny", {**sizes, "model.patch_px": 16, "cluster.object_store_gib": 0.2, "cluster.decoders": 3})

    @ray.remote(num_cpus=0)
    def take(split) -> int:
        seen = 0
        for block in taken(split, run):
            seen += len(block["index"])
            time.sleep(0.02)
        return seen

    splits = stream(run, manifest_path=site.manifest, start=0, decoder=slow(0.0, run.data.clip_bytes)).streaming_split(
        run.ranks, equal=True
    )
    assert ray.get([take.remote(split) for split in splits], timeout=PATIENCE_S) == [run.samples // 8] * 8
    (node,) = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
    assert stats.object_store_bytes_avail < 220e6
    assert (stats.spilled_bytes_total, stats.restored_bytes_total) == (0, 0)


def test_a_store_that_cannot_hold_a_few_blocks_is_refused_with_the_numbers(site: Site) -> None:
    from rayjepa.on_ray.cluster import _check_room

    large = resolve("tiny", {"data.size_px": 256, "data.frames": 32, "train.clips": 64, "cluster.decoders": 1})
    with pytest.raises(RuntimeError, match=r"has 6 blocks at once .* of 96 MiB each .*20\d MiB: it would stand"):
        _check_room(large)


def test_a_group_that_the_cluster_cannot_hold_is_refused_with_the_numbers(site: Site) -> None:
    from rayjepa.on_ray.cluster import _check_room

    large = resolve("tiny", {"cluster.workers": 4, "cluster.decoders": 40})
    with pytest.raises(RuntimeError, match=r"the cluster has 5 CPUs and the run needs 45"):
        _check_room(large)

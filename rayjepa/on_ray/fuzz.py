"""Damaged copies of videos through the real stream, into trainers that take and drop; and what became of each copy."""

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.exceptions

from rayjepa.config import RunConfig
from rayjepa.data import fuzz, manifest
from rayjepa.data.columns import SCHEMA
from rayjepa.data.index import indexing
from rayjepa.data.manifest import Manifest
from rayjepa.data.sandbox import GRACE_S
from rayjepa.data.tape import Tape, micro_batch_ids
from rayjepa.on_ray.actor import Columns, DecodeActor
from rayjepa.on_ray.stream import stream, taken

ROUND = 2000
"""Copies on disk, and in one stream, at a time: 60 MB."""
SOUND = 3
"""Copies for each sound video among them: a copy that fails needs one in its place."""
POLL_S = 0.5

Fate = Literal["clean", "concealed", "quarantined"]


@dataclass(kw_only=True)
class Fuzzed:
    """What became of the copies."""

    seed: int
    copies: int = 0
    fates: Counter[tuple[str, str, Fate]] = field(default_factory=Counter[tuple[str, str, Fate]])
    """By format, damage and fate; concealed: trained, with frames missing or packets refused."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Copies that were quarantined, by stage and kind."""
    killers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Attempts that ended a child at every try: name, reason, and the spec that did it."""
    restarts: int = 0
    """Children that had to be replaced."""
    lost: list[str] = field(default_factory=list[str])
    """What must never happen: a sample missing or out of order, a dead actor, a stream that stands still or fails."""
    clips: int = 0
    """Clips that the trainers got, the sound ones too."""
    slowest: tuple[float, list[str]] = (0.0, [])
    """Seconds of the slowest micro-batch, and its videos."""
    actor_mib: float = 0.0
    """Most memory of a decode actor."""
    child_mib: float = 0.0
    """Most memory that a child ever had."""
    seconds: float = 0.0


class WatchedActor(DecodeActor):
    """The decode actor, with a column `watched` on what each micro-batch took; one at a time."""

    def __init__(self, run: RunConfig, manifest_path: str, start: int, first: int = 0) -> None:
        super().__init__(run, manifest_path, start, first)
        self._alone = threading.Lock()

    def __call__(self, rows: Columns) -> Columns:
        with self._alone:
            began, restarts = time.monotonic(), self.decoders.restarts
            columns = super().__call__(rows)
            facts = {
                "actor": os.getpid(),
                "seconds": time.monotonic() - began,
                "restarts": self.decoders.restarts - restarts,
                "actor_mib": _mib("self", "VmRSS"),
                "child_mib": _mib(str(self.decoders.child_pids[0]), "VmHWM"),
            }
        return columns | {"watched": np.array([json.dumps(facts)] * len(columns["index"]), object)}


class NullTrainer:
    """Takes its share of the stream and drops the pixels; tells meanwhile what it has taken."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def take(self, split: Any, run: RunConfig) -> None:
        """Until the stream ends."""
        for block in taken(split, run):
            names = ("index", "attempt", "harm", "failures", "watched")
            self.taken.append({name: block[name].tolist() for name in names})

    def since(self, count: int) -> list[dict[str, Any]]:
        """Blocks after the first `count`."""
        return self.taken[count:]


def fuzz_stream(
    run: RunConfig, *, files: int, seed: int, keep: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Fuzzed:
    """Send copies 0 … `files` - 1 of the set `seed` through the stream of `run`, on the connected cluster.

    `keep` is a folder for those that ended a child at every try.
    """
    result, began = Fuzzed(seed=seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rayjepa-fuzz-") as scratch:
        sound = indexing.index(_corpus(Path(scratch)), cfg=run.data, processes=run.cluster.decoders)
        for first in range(0, files, ROUND):
            numbers = range(first, min(first + ROUND, files))
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                _round(run, sound, numbers, folder=Path(folder), keep=keep, result=result)
            result.copies += len(numbers)
            result.seconds = time.monotonic() - began
            say(f"{result.copies} of {files} copies, {result.seconds:.0f} s, {result.restarts} children replaced")
            if result.lost:
                break
    return result


def _corpus(scratch: Path) -> Path:
    fuzz.make_corpus(scratch / "sound")
    return scratch / "sound"


def _round(run: RunConfig, sound: Manifest, numbers: range, *, folder: Path, keep: Path | None, result: Fuzzed) -> None:
    """One stream over these copies and sound videos among them, each video once; add what became of them."""
    copies = _write_copies(sound, numbers, seed=result.seed, folder=folder)
    rows = _rows(sound, copies, clips=run.train.clips)
    path = folder / "manifest.parquet"
    manifest.write(Manifest(pa.Table.from_pylist(rows, schema=SCHEMA)), path)
    steps, cluster = len(rows) // run.train.clips, replace(run.cluster, block=1)  # a block tells of one micro-batch
    run = replace(run, train=replace(run.train, steps=steps), cluster=cluster)
    tape = Tape(run, manifest.read(path))
    assert tape.videos == len(rows) == run.samples, "one pass, each video once"
    actors: set[int] = set()
    met: set[str] = set()
    blocks = [0] * run.ranks
    for rank, block in _watch(run, path, result):
        step, micro = divmod(blocks[rank], run.train.accumulation)
        blocks[rank] += 1
        expected = list(micro_batch_ids(run, world=run.ranks, rank=rank, step=step, micro=micro))
        if block["index"] != expected:
            result.lost.append(f"rank {rank}: samples {block['index']} in place of {expected}")
        actors.add(_weigh(block, tape, result))
        for fate, spec_uri in _fates(block, tape, copies, result, keep):
            if spec_uri in met:
                result.lost.append(f"{spec_uri} came twice")
            met.add(spec_uri)
            made = copies[spec_uri]
            result.fates[made.format, made.damage, fate] += 1
    if missing := len(copies) - len(met):
        result.lost.append(f"{missing} copies were neither trained nor quarantined, such as {min(set(copies) - met)}")
    if len(actors) > run.cluster.most_decoders:
        result.lost.append(f"{len(actors)} decode actors have lived, of at most {run.cluster.most_decoders}")


def _write_copies(sound: Manifest, numbers: range, *, seed: int, folder: Path) -> dict[str, fuzz.Copy]:
    """The copies by path; their bytes are on disk alone."""
    corpus = {Path(uri).stem: Path(uri).read_bytes() for uri in sound.column("uri").to_pylist()}
    made: dict[str, fuzz.Copy] = {}
    for number in numbers:
        copy = fuzz.copy(number, seed=seed, corpus=corpus)
        path = folder / copy.name
        path.write_bytes(copy.data)
        made[str(path)] = replace(copy, data=b"")
    return made


def _rows(sound: Manifest, copies: dict[str, fuzz.Copy], *, clips: int) -> list[dict[str, Any]]:
    """A manifest's rows as if the copies had been sound when they were indexed, and sound videos to fill a step."""
    known = {Path(row["uri"]).stem: row | {"split": "train"} for row in sound.table.to_pylist()}
    rows = [known[copy.format] | {"uri": uri} for uri, copy in copies.items()]
    total = -(-(len(rows) + max(1, len(rows) // SOUND)) // clips) * clips
    healthy = list(known.values())
    return rows + [healthy[k % len(healthy)] for k in range(total - len(rows))]


def _watch(run: RunConfig, path: Path, result: Fuzzed) -> Iterator[tuple[int, dict[str, Any]]]:
    """Blocks as each rank's trainer has taken them; ends with the stream, or when that fails or stands still."""
    splits = stream(run, manifest_path=path, start=0, decoder=WatchedActor).streaming_split(run.ranks, equal=True)
    actor: Any = ray.remote(NullTrainer)
    trainers = [actor.options(num_cpus=0, max_concurrency=2).remote() for _ in splits]
    waiting = [trainer.take.remote(split, run) for trainer, split in zip(trainers, splits, strict=True)]
    # No micro-batch takes longer, even if each of its clips runs into its deadline at every try.
    patience_s = 60 + run.micro_batch * (1 + run.data.retries) * (run.data.decode_wall_s + GRACE_S)
    counts, moved = [0] * run.ranks, time.monotonic()
    ended: list[Any] = []
    try:
        while True:
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            for rank, trainer in enumerate(trainers):
                for block in ray.get(trainer.since.remote(counts[rank])):
                    counts[rank], moved = counts[rank] + 1, time.monotonic()
                    yield rank, block
            if len(ended) == len(waiting):
                ray.get(ended)
                return
            ended = done
            if time.monotonic() - moved > patience_s:
                result.lost.append(f"the stream stood still for {patience_s:.0f} s; blocks taken by rank: {counts}")
                return
    except ray.exceptions.RayError as error:
        result.lost.append(f"the stream failed: {getattr(error, 'cause', None) or error}")
    finally:
        for trainer in trainers:
            ray.kill(trainer)


def _weigh(block: dict[str, Any], tape: Tape, result: Fuzzed) -> int:
    """Add what a block took; return the process that decoded it."""
    facts = json.loads(block["watched"][0])
    result.clips += len(block["index"])
    result.restarts += facts["restarts"]
    if facts["seconds"] > result.slowest[0]:
        result.slowest = (facts["seconds"], [Path(tape.spec(i).uri).name for i in block["index"]])
    result.actor_mib = max(result.actor_mib, facts["actor_mib"])
    result.child_mib = max(result.child_mib, facts["child_mib"])
    return facts["actor"]


def _fates(
    block: dict[str, Any], tape: Tape, copies: dict[str, fuzz.Copy], result: Fuzzed, keep: Path | None
) -> Iterator[tuple[Fate, str]]:
    """What became of each copy that the block's samples asked for; count its failure, keep what ended children."""
    for index, attempt, harm, text in zip(*(block[n] for n in ("index", "attempt", "harm", "failures")), strict=True):
        failures = {failure["attempt"]: failure for failure in json.loads(text or "[]")}
        for failure in failures.values():
            if failure["stage"] == "child":
                _keep(failure, tape, result, keep)
        uri = tape.spec(index).uri
        if sorted(failures) != list(range(attempt)):
            result.lost.append(f"sample {index}: attempt {attempt} was trained, and {sorted(failures)} have failed")
        if uri not in copies:
            if attempt:
                result.lost.append(f"a sound video failed: {failures.get(0)}")
            continue
        if attempt and 0 in failures:
            result.failures[failures[0]["stage"], failures[0]["kind"]] += 1
        yield "quarantined" if attempt else "concealed" if harm else "clean", uri


def _keep(failure: dict[str, Any], tape: Tape, result: Fuzzed, keep: Path | None) -> None:
    """Note a video that ended a child at every try, and keep it with the spec that did so."""
    spec = asdict(tape.spec(failure["index"], failure["attempt"]))
    name = Path(failure["uri"]).name
    result.killers.append({"name": name, "kind": failure["kind"], "reason": failure["reason"], "spec": spec})
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / name).write_bytes(Path(failure["uri"]).read_bytes())
        (keep / f"{name}.json").write_text(json.dumps(result.killers[-1] | {"seed": result.seed}, indent=1))


def _mib(process: str, field_name: str) -> float:
    """A line of /proc/PID/status in MiB; 0 if the process is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(field_name)), 0.0)

"""The tape as a Ray Data stream: blocks of one micro-batch, in order, decoded by a pool of actors."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset

from rayjepa.config import RunConfig
from rayjepa.data import manifest
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import Failure
from rayjepa.data.decoder import Decoder
from rayjepa.data.tape import Tape

Columns = dict[str, Any]


class DecodeActor:
    """Sample indices in, decoded clips out; owns one decoder child for its life."""

    def __init__(self, run: RunConfig, manifest_path: str, start: int) -> None:
        self.tape = Tape(run, manifest.read(manifest_path))
        self.decoder = Decoder(run.data).__enter__()
        self.start = start

    def __call__(self, rows: Columns) -> Columns:
        """Shapes:  id (b,) int64 -> index (b,), attempt (b,), pixels (b, nbytes) uint8, failures (b,) JSON text."""
        index = rows["id"].astype(np.int64) + self.start
        decoded = self.decoder.clips([self.tape.spec(int(i)) for i in index], self.tape.spec)
        failures: dict[int, list[dict[str, Any]]] = {}
        for failure in decoded.failures:
            failures.setdefault(failure.index, []).append(asdict(failure))
        return {
            "index": index,
            "attempt": np.array([s.attempt for s in decoded.specs], np.int64),
            "pixels": decoded.pixels,
            "failures": np.array([json.dumps(failures[int(i)]) if int(i) in failures else "" for i in index], object),
        }


def stream(run: RunConfig, *, manifest_path: Path, start: int, decoder: Any = DecodeActor) -> Dataset:
    """Lazy dataset of the samples [start, S*B) in tape order, one micro-batch a block.

    With `preserve_order`, `streaming_split(equal=True)` deals whole blocks round robin, so rank r of W gets blocks
    r, r + W, … (run: design, decision 1). `start` must begin a step.
    Raises:  ValueError if it does not.
    """
    if start % run.train.clips:
        raise ValueError(f"start={start} does not begin a step of train.clips={run.train.clips} samples")
    rows = run.samples - start
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # An actor may die with its node; Ray Data starts another and retries its block.
    context.max_consecutive_actor_init_deaths = 3
    ids = ray.data.range(rows, override_num_blocks=max(1, min(1000, rows // 1000)))
    return ids.repartition(target_num_rows_per_block=run.micro_batch).map_batches(
        decoder,
        fn_constructor_args=(run, str(manifest_path), start),
        batch_size=None,
        compute=ActorPoolStrategy(size=run.cluster.decoders),
        num_cpus=1,
    )


def batches(blocks: Iterable[Columns], tape: Tape) -> Iterator[ClipBatch]:
    """What the loop takes, from the blocks that Ray Data hands to one rank."""
    for block in blocks:
        index = np.asarray(block["index"])
        failures = [json.loads(text) for text in block["failures"] if text]
        yield ClipBatch(
            index=torch.from_numpy(index.copy()),
            pixels=torch.from_numpy(np.array(block["pixels"])),  # a copy: Ray's buffers are read-only and shared
            specs=tuple(tape.spec(int(i), int(a)) for i, a in zip(index, block["attempt"], strict=True)),
            failures=tuple(Failure(**f) for several in failures for f in several),
        )

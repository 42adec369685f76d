"""The tape as a Ray Data stream: blocks of one micro-batch, in order, decoded by a pool of actors."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset

from rayjepa.config import RunConfig, streams_of
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import Failure
from rayjepa.data.tape import Tape
from rayjepa.on_ray.actor import Columns, DecodeActor


def stream(run: RunConfig, *, manifest_path: Path, start: int, first: int = 0, decoder: Any = DecodeActor) -> Dataset:
    """Lazy dataset of the samples from `start` on in tape order, one micro-batch a block.

    `run` has the samples [first, first + run.samples): all of a run, or a phase of it.
    With `preserve_order`, `streaming_split(equal=True)` deals whole blocks round robin, so rank r of W gets blocks
    r, r + W, … (run: design, decision 1). `start` must begin a step.
    Raises:  ValueError if it does not.
    """
    if start % run.train.clips:
        raise ValueError(f"start={start} does not begin a step of train.clips={run.train.clips} samples")
    size = run.micro_batch
    blocks = (first + run.samples - start) // size
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # A block that Ray cuts in two would shift the round robin: its limit must lie above any micro-batch.
    clip = max(part.run.data.clip_bytes for part in streams_of(run))
    context.target_max_block_size = max(128 * 2**20, 2 * size * clip)
    # An actor may die with its node; Ray Data starts another and retries its block.
    context.max_consecutive_actor_init_deaths = 3
    # A row is a micro-batch until it is decoded: `repartition` never joins rows of two read tasks, so that rows of one
    # sample would leave short blocks wherever the tasks' sizes are no multiple of a micro-batch.
    rows = ray.data.range(blocks, override_num_blocks=max(1, min(1000, blocks // 500)))
    return rows.repartition(target_num_rows_per_block=1).map_batches(
        decoder,
        fn_constructor_args=(run, str(manifest_path), start, first),
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
            layout=torch.from_numpy(np.array(block["layout"])),
            specs=tuple(tape.spec(int(i), int(a)) for i, a in zip(index, block["attempt"], strict=True)),
            failures=tuple(Failure(**f) for several in failures for f in several),
        )

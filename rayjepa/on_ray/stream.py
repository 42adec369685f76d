"""The tape as a Ray Data stream: blocks of some micro-batches of one rank, in order, decoded by a pool of actors."""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any, cast

import numpy as np
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data._internal.execution.backpressure_policy import ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY

from rayjepa.config import RunConfig, block_of, prefetch_of, streams_of
from rayjepa.config.parts import IN_FLIGHT
from rayjepa.data.batch import ClipBatch
from rayjepa.data.blocks import Blocks, Timing
from rayjepa.data.clip import Failure
from rayjepa.data.tape import Tape
from rayjepa.on_ray.actor import Columns, DecodeActor
from rayjepa.on_ray.pacing import POLICIES

# Calls that an actor works on at once: it decodes for one while Ray takes the clips of the other away.
CALLS = 2
# Calls in flight over what actors work on, from which on the pool grows, and up to which it shrinks.
GROWS, SHRINKS = 1.25, 0.5
# What Ray Data may fill of the object store.
STORE_SHARE = 0.7


def stream(run: RunConfig, *, manifest_path: Path, start: int, first: int = 0, decoder: Any = DecodeActor) -> Dataset:
    """Lazy dataset of the samples from `start` on in tape order, in the blocks of `Blocks`.

    `run` has the samples [first, first + run.samples): all of a run, or a phase of it.
    With `preserve_order`, `streaming_split(equal=True)` deals whole blocks round robin, so rank r of W gets blocks
    r, r + W, … (run: design, decision 1). `start` must begin a step.
    Raises:  ValueError if it does not.
    """
    blocks = Blocks.of(run, start=start, first=first)
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    # A block that Ray cuts in two would shift the round robin: its limit must lie above any of ours.
    clip = max(part.run.data.clip_bytes for part in streams_of(run))
    context.target_max_block_size = max(128 * 2**20, 2 * blocks.size * blocks.micro_batch * clip)
    # Of the object store; beyond four fifths Ray writes to disk.
    context.override_object_store_memory_limit_fraction = STORE_SHARE
    # By what share of their places for calls the actors are taken: all of them, with others waiting, or few.
    scaling = context.autoscaling_config
    scaling.actor_pool_util_upscaling_threshold = GROWS
    scaling.actor_pool_util_downscaling_threshold = SHRINKS
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, POLICIES)
    # An actor may die with its node; Ray Data starts another and retries its block.
    context.max_consecutive_actor_init_deaths = 3
    # A row is a block until it is decoded: `repartition` never joins rows of two read tasks, so that rows of one
    # sample would leave short blocks wherever the tasks' sizes are no multiple of a block.
    rows = ray.data.range(len(blocks), override_num_blocks=max(1, min(1000, len(blocks) // 500)))
    pool = run.cluster.decoders, run.cluster.most_decoders
    return rows.repartition(target_num_rows_per_block=1).map_batches(
        decoder,
        fn_constructor_args=(run, str(manifest_path), start, first),
        batch_size=None,
        compute=ActorPoolStrategy(
            min_size=pool[0],
            max_size=pool[1],
            max_tasks_in_flight_per_actor=IN_FLIGHT,
            max_concurrent_calls_per_actor=CALLS,
        ),
        num_cpus=1,
    )


def taken(shard: ray.data.DataIterator, run: RunConfig) -> Iterable[Columns]:
    """The blocks that Ray Data hands to one rank, as many ahead as make up the micro-batches that it holds ready."""
    ahead = -(-prefetch_of(run) // block_of(run))
    # None stands for whole blocks, which its types do not know.
    blocks: Any = shard.iter_batches(batch_size=cast("int", None), prefetch_batches=ahead, batch_format="numpy")
    return blocks


def batches(blocks: Iterable[Columns], tape: Tape, *, micro_batch: int) -> Iterator[ClipBatch]:
    """What the loop takes, from the blocks that Ray Data hands to one rank; in tensors before it asks for it.

    The stream begins at once, so that clips are decoded while the caller makes its model.
    """
    ready: Queue[ClipBatch | BaseException | None] = Queue(maxsize=1)
    closed = threading.Event()

    def work() -> None:
        try:
            for block in blocks:
                for batch in micro_batches(block, tape, micro_batch=micro_batch):
                    ready.put(batch)
                    if closed.is_set():
                        return
            ready.put(None)
        except BaseException as error:  # noqa: BLE001  handed to the loop's thread
            ready.put(error)

    threading.Thread(target=work, name="reader", daemon=True).start()
    return _handed(ready, closed)


def _handed(ready: Queue[ClipBatch | BaseException | None], closed: threading.Event) -> Iterator[ClipBatch]:
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        closed.set()
        while not ready.empty():  # a thread that waits for room would wait for ever
            ready.get_nowait()


def micro_batches(block: Columns, tape: Tape, *, micro_batch: int) -> Iterator[ClipBatch]:
    """The micro-batches of a block."""
    for at in range(0, len(block["index"]), micro_batch):
        began = time.perf_counter()
        part = {name: np.asarray(column)[at : at + micro_batch] for name, column in block.items()}
        specs = tuple(tape.spec(int(i), int(a)) for i, a in zip(part["index"], part["attempt"], strict=True))
        failures = [json.loads(text) for text in part["failures"] if text]
        # Copies: Ray's buffers are read-only and shared. A block of several streams has rows as long as the longest.
        index, layout = (torch.from_numpy(part[name].copy()) for name in ("index", "layout"))
        pixels = torch.from_numpy(part["pixels"][:, : specs[0].nbytes].copy())
        *spent, actor = (*part["timing"][:, :-1].sum(axis=0), part["timing"][0, -1])
        yield ClipBatch(
            index=index,
            pixels=pixels,
            layout=layout,
            specs=specs,
            failures=tuple(Failure(**f) for several in failures for f in several),
            timing=Timing(*map(float, spent), actor=float(actor)),
            transfer_s=time.perf_counter() - began,
        )

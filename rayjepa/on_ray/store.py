"""The object store of the connected cluster: whether it holds a run's blocks, and how many of them ahead of it."""

import dataclasses
from collections.abc import Sequence

from rayjepa.config import RunConfig, block_of, phases_of, prefetch_of, streams_of
from rayjepa.on_ray.placement import Node, Part

LEAST_BLOCKS = 4
"""Blocks that a node's store must hold: of one that is decoded, one on its way, one ahead and one in use."""
MEMORY = "object_store_memory"


def block_bytes(run: RunConfig) -> int:
    """Bytes of the largest block of the stream, in any phase."""
    runs = [phase.run for phase in phases_of(run)]
    return max(
        block_of(run) * run.micro_batch * max(stream.run.data.clip_bytes for stream in streams_of(run)) for run in runs
    )


def refuse_too_small(run: RunConfig, nodes: Sequence[Node]) -> None:
    """Raises:  RuntimeError if no node's store could hold a run's blocks, with the numbers and the knobs."""
    stores = [store for node in nodes if (store := node.total.get(MEMORY, 0.0))]
    need = LEAST_BLOCKS * block_bytes(run)
    if stores and max(stores) < need:
        raise RuntimeError(
            f"a block of the stream has {block_bytes(run) / 2**20:.0f} MiB (cluster.block={block_of(run)} x "
            f"micro-batches of {run.micro_batch} clips), and the largest object store of {len(stores)} node(s) has "
            f"{max(stores) / 2**20:.0f} MiB: {LEAST_BLOCKS} blocks must fit. Raise cluster.object_store_gib (on an "
            "attached cluster `ray start --object-store-memory=BYTES`) or train.accumulation, or lower cluster.block"
        )


def fitted(run: RunConfig, nodes: Sequence[Node], train: Part) -> RunConfig:
    """The same run with cluster.prefetch written out, if it is not set, from the stores of an attached cluster.

    Of the nodes that can hold a train worker the one with the least store for each of those that fit on it decides.
    """
    shares: list[float] = []
    for node in nodes:
        fit = min(node.total.get(name, 0.0) // amount for name, amount in train.resources)
        if node.has(train.label) and fit >= 1 and node.total.get(MEMORY):
            shares.append(node.total[MEMORY] / min(fit, run.ranks))
    if run.cluster.prefetch is not None or not shares:
        return run
    gib = min(shares) * run.ranks / 2**30
    sized = dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, object_store_gib=max(gib, 0.1)))
    return dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, prefetch=prefetch_of(sized)))

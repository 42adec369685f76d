"""The object store of the connected cluster: whether it holds a run's blocks, and how many of them ahead of it."""

import dataclasses
from collections.abc import Sequence

from rayjepa.config import RunConfig, block_of, blocks_between, phases_of, prefetch_of, streams_of
from rayjepa.on_ray.placement import Node, Part

DECODED_SHARE = 0.35
"""Of the object stores: what blocks may fill, from their decoder to what ranks hold ready. Ray Data stops decoding at
two fifths or more, and a rank begins only once it holds all that it is to hold."""
MEMORY = "object_store_memory"


def block_bytes(run: RunConfig) -> int:
    """Bytes of the largest block of the stream."""
    return block_of(run) * run.micro_batch * max(stream.run.data.clip_bytes for stream in streams_of(run))


def refuse_too_small(run: RunConfig, nodes: Sequence[Node]) -> None:
    """Raises:  RuntimeError if the stores cannot hold the blocks that a phase has at once, with numbers and knobs."""
    have = sum(node.total.get(MEMORY, 0.0) for node in nodes)
    for phase in phases_of(run):
        own, size = phase.run, block_bytes(phase.run)
        ahead = -(-prefetch_of(own) // block_of(own))
        blocks = own.ranks * ahead + blocks_between(own)
        if have and blocks * size > DECODED_SHARE * have:
            raise RuntimeError(
                f"the stream has {blocks} blocks at once ({ahead} held ready by each of {own.ranks} rank(s), the "
                f"others being decoded and dealt out) of {size / 2**20:.0f} MiB each (cluster.block={block_of(own)} x "
                f"micro-batches of {own.micro_batch} clips), more than {DECODED_SHARE:g} of the object stores' "
                f"{have / 2**20:.0f} MiB: it would stand still. Raise cluster.object_store_gib (on an attached cluster "
                "`ray start --object-store-memory=BYTES`) or train.accumulation, or lower cluster.prefetch, "
                "cluster.block or cluster.decoders"
            )


def fitted(run: RunConfig, nodes: Sequence[Node], train: Part) -> RunConfig:
    """The same run with cluster.block and cluster.prefetch written out, from the stores of an attached cluster.

    Of the nodes that can hold a train worker the one with the least store for each of those that fit on it decides.
    """
    shares: list[float] = []
    for node in nodes:
        fit = min(node.total.get(name, 0.0) // amount for name, amount in train.resources)
        if node.has(train.label) and fit >= 1 and node.total.get(MEMORY):
            shares.append(node.total[MEMORY] / min(fit, run.ranks))
    if not shares:
        return run
    gib = max(0.1, min(shares) * run.ranks / 2**30)
    sized = dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, object_store_gib=gib))
    written = dataclasses.replace(run.cluster, block=block_of(sized), prefetch=prefetch_of(sized))
    return dataclasses.replace(run, cluster=written)

"""The runs that `bench feed` measures: the asked one with other counts of processes, its micro-batches as they are."""

import dataclasses
import os
from collections.abc import Collection, Mapping

from rayjepa.bench.feed import Part
from rayjepa.config import RunConfig, phases_of

STEPS = 50_000
"""Of the tape that is measured on: none of it ever ends while clips are counted."""
SIZES_PX, ROWS, TRAINERS = (64, 128, 256), (1_000, 100_000, 1_000_000), (1, 2, 4, 8)
CEILING_TRAINERS, CEILING_BLOCKS = (2, 4, 8, 16), (1, 4, 16)


def measured_run(run: RunConfig, overrides: Mapping[str, object]) -> RunConfig:
    """The first phase of `run` on a long tape, with no more processes than cores where `overrides` do not say.

    One core is left to the trainer: it takes what comes, and must not take it from those that decode.
    """
    cores, own = len(os.sched_getaffinity(0)), run.cluster
    decoders = own.decoders if "cluster.decoders" in overrides else max(1, cores - 1)
    workers = own.workers if "cluster.workers" in overrides else 1
    main = phases_of(run)[0].run
    train = dataclasses.replace(main.train, clips=run.micro_batch * workers, accumulation=1, steps=STEPS)
    cluster = dataclasses.replace(own, workers=workers, decoders=decoders, max_decoders=None, gpus=False)
    data = dataclasses.replace(main.data, quantum=None)
    return dataclasses.replace(main, train=train, cluster=cluster, data=data)


def roomy(run: RunConfig, parts: Collection[Part]) -> RunConfig:
    """The same run as a cluster must have room for, to hold all that `parts` start at a time."""
    most = max([run.cluster.decoders, *(actors() if "growth" in parts else ())])
    return with_decoders(run, most)


def actors() -> list[int]:
    """Numbers of decode actors to grow through: 1, 2, 4 … up to the cores of this machine, 2 at least."""
    cores = len(os.sched_getaffinity(0))
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= max(2, cores)]


def with_decoders(run: RunConfig, decoders: int) -> RunConfig:
    """The same run with so many decode actors."""
    return dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, decoders=decoders))


def with_prefetch(run: RunConfig, prefetch: int) -> RunConfig:
    """The same run with so many micro-batches held ready."""
    return dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, prefetch=prefetch))


def with_block(run: RunConfig, block: int) -> RunConfig:
    """The same run with so many micro-batches in a block."""
    return dataclasses.replace(run, cluster=dataclasses.replace(run.cluster, block=block))


def with_size(run: RunConfig, px: int) -> RunConfig:
    """The same run with clips of another size."""
    return dataclasses.replace(run, data=dataclasses.replace(run.data, size_px=px))


def with_trainers(run: RunConfig, trainers: int) -> RunConfig:
    """The same run with so many ranks."""
    cluster = dataclasses.replace(run.cluster, workers=trainers)
    train = dataclasses.replace(run.train, clips=trainers * run.micro_batch)
    return dataclasses.replace(run, cluster=cluster, train=train)

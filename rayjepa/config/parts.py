"""The parts of a run that have knobs of their own: phases one after the other, streams side by side.

Each part is a whole `RunConfig` without parts, so that masks, views, tape and schedules know nothing of parts.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayjepa.config.resolve import ConfigError, dotted, dump, resolve
from rayjepa.config.run import RunConfig
from rayjepa.config.training import ProfileConfig

MAIN = "main"
"""Name of the phase that train.steps counts."""
VIDEO = "video"
"""Name of the only stream of a run without streams."""
BLOCK_BYTES = 4 << 20
"""Bytes below which a block of the stream is mostly overhead: Ray Data spends some milliseconds on each."""
MOST_IN_BLOCK = 16
AHEAD_SHARE = 0.25
"""Share of the object store for blocks, from their decoder to what ranks hold ready. Ray Data lets a decoder's clips
have two fifths at least, and a rank begins only once it holds all that it is to hold: more could wait for ever."""
IN_FLIGHT = 3
"""Blocks that a decode actor works on, has finished, or has before it. More would wait behind a slow clip, though other
actors are free."""
MOST_AHEAD = 64
FIXED = ("name", "out", "seed", "model", "predictor", "cluster", "zero", "profile", "streams", "phases")
"""Sections and knobs that are the same in all phases: the weights go on, and so does the tape."""
FIXED_KEYS = (
    "data.videos",
    "data.cache",
    "data.synthetic_videos",
    "data.holdout",
    "data.quantum",
    "train.clips",
    "train.steps",
    "train.engine",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Steps [first, stop) of the run, taken with the knobs of `run`, whose train.steps is stop - first."""

    name: str
    first: int
    stop: int
    run: RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A share of every step's samples, decoded, masked and viewed with the knobs of `run`."""

    name: str
    weight: float
    run: RunConfig
    source: str | None = None
    """Its name, if it has videos of its own; none: it draws from those of the run."""


def phases_of(run: RunConfig) -> tuple[Phase, ...]:
    """The phases of `run` in order; each run keeps the streams and has no phases.

    Nor has it profile.steps, which count through all phases.
    Raises:  ConfigError if a phase sets an unknown knob, or one that must not change, or to a value that does not fit.
    """
    plain = dataclasses.replace(run, phases=(), profile=ProfileConfig())
    phases = [Phase(name=MAIN, first=0, stop=run.train.steps, run=plain)]
    names = [MAIN, *(cfg.name for cfg in run.phases)]
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ConfigError(f"phases have the names {', '.join(map(repr, names))}; each needs its own (the first has it)")
    for cfg in run.phases:
        where = f"phases[{cfg.name}].set"
        for key in dotted(cfg.set):
            if key == "train.steps":
                raise ConfigError(f"{where}: train.steps is of phase {MAIN}; this one has phases[{cfg.name}].steps")
            if key.split(".")[0] in FIXED or key in FIXED_KEYS:
                raise ConfigError(f"{where}: {key} is the same in all phases of a run; set it for the run")
        values = {**dotted(cfg.set), "train.steps": cfg.steps}
        if run.streams:  # the quotas of the streams go on
            values["data.quantum"] = quantum_of(run)
        own = _with(phases[0].run, values, where)
        if own.model.position == "sincos" and own.model.sincos_grid is None:
            model = dataclasses.replace(own.model, sincos_grid=run.grid)  # made once, for the first phase
            own = dataclasses.replace(own, model=model)
        first = phases[-1].stop
        phases.append(Phase(name=cfg.name, first=first, stop=first + cfg.steps, run=own))
    return tuple(phases)


def phase_at(run: RunConfig, finished: int) -> Phase:
    """The phase of the step that follows `finished` steps; the last phase if there is none."""
    phases = phases_of(run)
    return next((phase for phase in phases if finished < phase.stop), phases[-1])


def streams_of(run: RunConfig) -> tuple[Stream, ...]:
    """The streams of `run`, at least one; each run has no streams and no phases.

    Raises:  ConfigError if a stream sets a knob that is not of data, views or masks, or to a value that does not fit.
    """
    plain = dataclasses.replace(run, streams=(), phases=(), profile=ProfileConfig())
    if not run.streams:
        return (Stream(name=VIDEO, weight=1.0, run=plain),)
    names = [cfg.name for cfg in run.streams]
    if len(set(names)) < len(names):
        raise ConfigError(f"streams have the names {', '.join(names)}; each needs its own")
    quantum_of(run)
    streams: list[Stream] = []
    for cfg in run.streams:
        where = f"streams[{cfg.name}].set"
        for key in dotted(cfg.set):
            if key.split(".")[0] not in ("data", "views", "masks"):
                raise ConfigError(f"{where}: {key} is not a knob of data, views or masks, which a stream may set")
            if key == "data.quantum":
                raise ConfigError(f"{where}: {key} is one number for all streams of a run")
        values = dotted(cfg.set)
        if "data.videos" in values:  # weights of the run's sources say nothing of these
            values = {"data.sources": (), **values}
        own = _with(plain, values, where)
        brings = "data.videos" in values or ("data.sources" in values and any(s.videos for s in own.data.sources))
        source = cfg.name if brings else None
        streams.append(Stream(name=cfg.name, weight=cfg.weight, run=own, source=source))
    return tuple(streams)


def block_of(run: RunConfig) -> int:
    """Micro-batches of one rank that make a block of the stream: cluster.block, or as many as make one worth sending.

    A stream moves some tens of blocks a second, whatever is in them; but a few blocks for each rank must fit into the
    object store.
    """
    fit = _room(run) // ((3 * run.ranks + IN_FLIGHT * run.cluster.decoders) * _micro_batch_bytes(run))
    return run.cluster.block or max(1, min(MOST_IN_BLOCK, fit, -(-BLOCK_BYTES // _micro_batch_bytes(run))))


def prefetch_of(run: RunConfig) -> int:
    """Micro-batches that each rank holds ready: cluster.prefetch, or as many as its part of the object store holds."""
    block = block_of(run)
    blocks = _room(run) // (block * _micro_batch_bytes(run)) - blocks_between(run)
    return run.cluster.prefetch or max(1, min(MOST_AHEAD, blocks // run.ranks * block))


def blocks_between(run: RunConfig) -> int:
    """Blocks that are being decoded, or wait until there is one for each rank: they are dealt out together."""
    return run.ranks - 1 + IN_FLIGHT * run.cluster.decoders


def _room(run: RunConfig) -> int:
    return int(run.cluster.object_store_gib * AHEAD_SHARE * 2**30)


def _micro_batch_bytes(run: RunConfig) -> int:
    """Bytes of a rank's largest micro-batch."""
    return run.micro_batch * max(stream.run.data.clip_bytes for stream in streams_of(run))


def quantum_of(run: RunConfig) -> int:
    """Clips of one stream that a step has a multiple of: data.quantum, or what the ranks take at once.

    All ranks take clips of one stream at the same time, so that they run the same modules in the same order.
    Raises:  ConfigError if data.quantum does not fit a step, or what the ranks take at once.
    """
    at_once = run.ranks * run.micro_batch
    quantum = run.data.quantum or at_once
    if quantum % at_once:
        raise ConfigError(
            f"data.quantum={quantum} is not a multiple of the {at_once} clips that {run.ranks} worker(s) x micro-batch "
            f"{run.micro_batch} take at once; nearest: {max(1, round(quantum / at_once)) * at_once}, or more "
            f"train.accumulation (now {run.train.accumulation}) for smaller micro-batches"
        )
    if run.train.clips % quantum:
        raise ConfigError(
            f"train.clips={run.train.clips} is not a multiple of data.quantum={quantum}; "
            f"nearest: train.clips={max(1, round(run.train.clips / quantum)) * quantum}, "
            f"or data.quantum={at_once}, what the ranks take at once"
        )
    return quantum


def settled(run: RunConfig) -> RunConfig:
    """The same run with data.quantum written out, so that other workers or micro-batches later keep its samples.

    So is the path of model.init, which workers elsewhere take from another folder.
    """
    if run.model.init is not None:
        init = str(Path(run.model.init).expanduser().absolute())
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, init=init))
    if not run.streams:
        return run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, quantum=quantum_of(run)))


def _with(run: RunConfig, values: Mapping[str, Any], where: str) -> RunConfig:
    try:
        return resolve(None, {**dump(run), **values})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None

"""Which stage holds back the steps of a run, and which knob to turn: of `bench feed` and of `doctor feed` alike."""

from dataclasses import dataclass
from typing import Literal

from rayjepa.config import RunConfig, block_of, prefetch_of
from rayjepa.report.numbers import number, plural, share

Bound = Literal["device", "storage", "decode", "cores", "transfer", "stream", "unknown"]

FED = 0.02
"""Share of a step's time below which waiting for clips is not worth a knob."""
BUSY = 0.9
"""Share of their time from which on decode actors have no more to give: the rest goes by between two calls."""
READING = 0.5
"""Share of a clip's time in a decode actor from which on it is storage that takes it."""
CROWDED = 1.5
"""Time in a decoder over its CPU time from which on others have its core."""
MOVING = 0.8
"""Share of a step's time from which on the thread that makes tensors of blocks cannot keep up."""
MARGIN = 1.2
"""Capacity over demand at which waits vanish, so that all decoders a run should have are so many more."""
MANY_BLOCKS = 40.0
"""Blocks a second from which on a stream may be short of time for each: about half of what one moves on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """What a stream and its trainers did in a span of time: means over ranks and steps. None: nothing says."""

    steps: int
    step_ms: float
    wait_ms: float
    """Of a step, for clips."""
    clips_per_s: float
    transfer_ms: float | None = None
    """For a step: taking clips out of the object store into tensors, in a thread beside the step."""
    blocks_per_s: float | None = None
    decode_ms: float | None = None
    """Of a clip in its decode actor, reads included."""
    decode_cpu_ms: float | None = None
    """Of a clip, CPU of the decoder's child."""
    read_ms: float | None = None
    """Of a clip, waiting for storage."""
    read_mb: float | None = None
    """Of a clip, from remote storage or out of shards."""
    busy_share: float | None = None
    """Of the decode actors' time, decoding."""
    most_actors: int | None = None
    """Decode actors that there may be at once."""
    is_endless: bool = False
    """Whoever takes the clips does nothing with them: it waits always, and no number of clips would be enough."""

    @property
    def wait_share(self) -> float:
        """Of the steps' time, spent waiting for clips."""
        return self.wait_ms / self.step_ms if self.step_ms else 0.0

    @property
    def actors(self) -> float | None:
        """Decode actors that were at work or idle: what was decoded at a time, over the share of theirs that it took.

        Not counted by who made the clips: a rank sees few of many in a short time. Within what there may be: a short
        run is fed by what was decoded before its steps began, so that it comes to more, or to less.
        """
        if self.decode_ms is None or not self.busy_share:
            return None
        found = max(1.0, self.clips_per_s * self.decode_ms / 1000 / self.busy_share)
        return found if self.most_actors is None else min(found, float(self.most_actors))

    @property
    def demand(self) -> float:
        """Clips a second that the trainers would take if they never waited; what they got, if that has no end."""
        working = 1 - min(self.wait_share, 0.999)
        return self.clips_per_s if self.is_endless else self.clips_per_s / working


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What holds the steps back, in a sentence with its figures, and what to do, most useful first."""

    bound: Bound
    found: str
    remedies: tuple[str, ...] = ()
    short: float = 0.0
    """Decode actors that are missing for MARGIN times the demand; 0: none, or they would not help."""


def verdict(fed: Feeding, run: RunConfig | None = None) -> Verdict:
    """The stage that bounds; `run` adds the values that its knobs have now."""
    waits = f"steps wait {share(fed.wait_share)} of their time for clips"
    if not fed.is_endless and fed.wait_share < FED:
        return Verdict(
            bound="device", found=f"the device: {waits}; feeding it faster would change nothing{_spare(fed)}"
        )
    if run is not None and run.cluster.workers == 0:
        found = f"decode: {waits}, since cluster.workers=0 decodes in the training process, between two steps"
        return Verdict(bound="decode", found=found, remedies=("cluster.workers=1 decodes beside the steps",))
    if fed.busy_share is None or fed.decode_ms is None or fed.actors is None:
        found = f"unknown: {waits}, and these metrics do not say what the decode actors did meanwhile"
        return Verdict(bound="unknown", found=found, remedies=("a run of this version of rayjepa says it",))
    if fed.busy_share > BUSY:
        return _decoders(fed, fed.decode_ms, fed.actors, waits, run)
    idle = f"decode actors are busy only {share(fed.busy_share)} of their time"
    if fed.transfer_ms is not None and fed.transfer_ms > MOVING * fed.step_ms:
        found = (
            f"transfer: {waits}, while {idle}; the thread that takes clips out of the object store needs "
            f"{number(fed.transfer_ms)} ms of a step's {number(fed.step_ms)} ms"
        )
        return Verdict(bound="transfer", found=found, remedies=_smaller(run))
    return _stream(fed, waits, idle, run)


def _spare(fed: Feeding) -> str:
    if fed.busy_share is None or fed.actors is None:
        return ""
    spare = fed.actors * (1 - fed.busy_share)
    return f" ({spare:.1f} of {fed.actors:.1f} decode actors idle)" if spare > 0.05 * fed.actors else ""


def _decoders(fed: Feeding, decode_ms: float, actors: float, waits: str, run: RunConfig | None) -> Verdict:
    """Decode actors have no time left: for storage, for the CPU, or for a core that they share."""
    needed = MARGIN * fed.demand * decode_ms / 1000
    short = 0.0 if fed.is_endless else max(0.0, needed - actors)
    busy = f"{plural(max(1, round(actors)), 'decode actor')} busy {share(fed.busy_share or 0.0)} of the time"
    lacking = (
        f"each more gives {number(1000 / decode_ms)} clips/s"
        if fed.is_endless
        else f"{short:.1f} more are needed for {MARGIN:g} x the {number(fed.demand)} clips/s that the steps would take"
    )
    read_ms, cpu_ms = fed.read_ms or 0.0, fed.decode_cpu_ms
    now = f" (now {run.cluster.decoders})" if run is not None else ""
    if read_ms > READING * decode_ms:
        mb = f", {number(fed.read_mb)} MB" if fed.read_mb else ""
        found = f"storage: {waits}; {busy}, and {number(read_ms)} of a clip's {number(decode_ms)} ms is waiting for "
        return Verdict(
            bound="storage",
            found=f"{found}storage{mb}; {lacking}, which cost little CPU ({_ms(cpu_ms)} a clip)",
            remedies=(
                f"cluster.decoders{now} or cluster.max_decoders above the number of cores: actors that wait for "
                "storage share a core",
                f"data.node_cache_gib{_now(run, 'node_cache_gib')} keeps videos on the nodes for later passes",
                f"data.whole_mib{_now(run, 'whole_mib')}: larger reads a video in one request, smaller reads less of "
                "it; data.clips_per_video takes several clips of one read",
            ),
            short=short,
        )
    if cpu_ms and decode_ms - read_ms > CROWDED * cpu_ms:
        found = (
            f"cores: {waits}; {busy}, but a clip takes {number(decode_ms)} ms for {number(cpu_ms)} ms of CPU: others "
            "have the cores of the decoders"
        )
        remedies = (
            f"fewer processes on these cores: cluster.decoders{now}, cluster.workers and train.threads in all no more "
            "than there are cores; or decode on other nodes (cluster.decode_label)",
        )
        return Verdict(bound="cores", found=found, remedies=remedies, short=short)
    found = f"decode: {waits}; {busy}, {number(decode_ms)} ms a clip ({_ms(cpu_ms)}, {number(read_ms)} ms storage)"
    return Verdict(
        bound="decode",
        found=f"{found}; {lacking}",
        remedies=(
            f"cluster.decoders{now} or cluster.max_decoders, one for each free core; CPU-only nodes by "
            "cluster.decode_label",
            "`rayjepa transcode`: a small copy of the videos decodes several times as fast",
            f"data.clips_per_video{_now(run, 'clips_per_video')}: opens a video once for several clips",
            *(("data.pixels=i420: rgb costs more to make and twice the bytes",) if _is_rgb(run) else ()),
        ),
        short=short,
    )


def _stream(fed: Feeding, waits: str, idle: str, run: RunConfig | None) -> Verdict:
    """Clips could be decoded, and steps wait for them: it is what lies between."""
    rate = f" at {number(fed.blocks_per_s)} blocks/s" if fed.blocks_per_s is not None else ""
    block = f"cluster.block (now {block_of(run)})" if run is not None else "cluster.block"
    ahead = f"cluster.prefetch (now {prefetch_of(run)})" if run is not None else "cluster.prefetch"
    store = f" (now {run.cluster.object_store_gib:g})" if run is not None else ""
    larger = f"{block}: larger blocks, since a stream spends milliseconds on each"
    longer = f"{ahead}: more micro-batches held ready, where single clips are slow or steps uneven"
    room = f"cluster.object_store_gib{store}: Ray Data decodes ahead into half of it, and stops when that is full"
    many = fed.blocks_per_s is not None and fed.blocks_per_s > MANY_BLOCKS
    return Verdict(
        bound="stream",
        found=f"the stream: {waits}, while {idle}{rate}",
        remedies=(larger, longer, room) if many else (longer, room, larger),
    )


def _smaller(run: RunConfig | None) -> tuple[str, ...]:
    """What leaves fewer bytes to copy, or another to copy them."""
    threads = f" (now {run.cluster.cpus_per_worker:g})" if run is not None else ""
    spare = f"a core for it beside the step: fewer processes on this node, or more cluster.cpus_per_worker{threads}"
    fewer = "fewer bytes a clip: data.window=crop, a smaller data.size_px, or more workers that share a step's clips"
    return (*(("data.pixels=i420 halves the bytes",) if _is_rgb(run) else ()), spare, fewer)


def _is_rgb(run: RunConfig | None) -> bool:
    return run is not None and run.data.pixels == "rgb"


def _now(run: RunConfig | None, knob: str) -> str:
    return f" (now {getattr(run.data, knob):g})" if run is not None else ""


def _ms(value: float | None) -> str:
    return "CPU not known" if value is None else f"{number(value)} ms CPU"

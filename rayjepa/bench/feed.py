"""`rayjepa bench feed`: what is measured, and the arithmetic from arrivals of clips to rates, waits and ratios.

A rate counts clips between the arrivals of two blocks, both of them decoded after the measurement had begun: what a
pipeline had ready when it was first asked does not count, nor what it never finishes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Literal, get_args

from rayjepa.bench.feed_verdict import Feeding
from rayjepa.bench.spread import Spread, spread
from rayjepa.data.blocks import Timing

Part = Literal["ratios", "slow", "growth", "ceiling"]
PARTS: tuple[Part, ...] = get_args(Part)
DEMANDS = (1.5, 1.2, 1.05)
"""Capacity over demand of the trainers that sleep."""
SLOW_EVERY, SLOW_S = 1000, 2.0
"""One clip in so many takes so much longer in its decoder."""
SLOW_DEMAND = 1.2
OFF = 2
"""Micro-batches held ready where prefetch is off, in blocks of one: fewer would leave nothing to hand over."""
GPUS, GPU_CLIPS_PER_S = 1024, 14_000 / 128
"""GPUs that one stream is to feed, and what each takes: ViT-L on H100, estimated (`rayjepa plan`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One micro-batch, as its taker got it. Moments are seconds of the machine's clock."""

    clips: int
    made_s: float
    """When its block was decoded: the same for all micro-batches of a block."""
    arrived_s: float
    waited_s: float
    """For it."""
    slept_s: float = 0.0
    """With it, as a trainer computes."""
    timing: Timing | None = None
    transfer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Clips per second of all takers together, and over which span of time."""

    arrived: float
    made: float
    """Decoded in the same span: less, where more had been ready at its beginning than at its end."""
    seconds: float

    @property
    def clips_per_s(self) -> float:
        """The lower of the two, which no queue can flatter."""
        return min(self.arrived, self.made)


def rate(takers: Sequence[Sequence[Arrival]]) -> Rate:
    """The steady rate of what `takers` took from the moment at which each began.

    Raises:  RuntimeError if a taker got fewer than two blocks that were decoded after its first had arrived.
    """
    arrived = made = seconds = 0.0
    for taken in takers:
        blocks = [list(block) for _, block in groupby(taken, key=lambda a: a.made_s)]
        blocks = [block for block in blocks if block[0].made_s > taken[0].arrived_s]
        if len(blocks) < 2:
            raise RuntimeError(
                f"only {len(blocks)} block(s) came while clips were counted, and a rate needs 2 at least: raise "
                "--seconds, or lower cluster.block"
            )
        clips = [sum(a.clips for a in block) for block in blocks]
        span_s = blocks[-1][0].arrived_s - blocks[0][0].arrived_s
        arrived += sum(clips[:-1]) / span_s  # up to the last one's arrival, and it has only begun to arrive
        # Several decoders may end in another order than that of the tape.
        (first_s, first), *_, (last_s, _) = sorted((block[0].made_s, n) for block, n in zip(blocks, clips, strict=True))
        made += (sum(clips) - first) / (last_s - first_s)
        seconds = max(seconds, span_s)
    return Rate(arrived=arrived, made=made, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What trainers that sleep waited for clips."""

    demand: float
    """Clips per second that they would take if they never waited."""
    share: float
    """Of their time."""
    longest_s: float


def waits(takers: Sequence[Sequence[Arrival]], *, demand: float) -> Waits:
    """Over all that was taken."""
    arrivals = [a for taken in takers for a in taken]
    waited = sum(a.waited_s for a in arrivals)
    return Waits(
        demand=demand,
        share=waited / (waited + sum(a.slept_s for a in arrivals)),
        longest_s=max(a.waited_s for a in arrivals),
    )


def feeding(takers: Sequence[Sequence[Arrival]], *, is_endless: bool) -> Feeding:
    """What the pipeline did meanwhile, as a run's metrics would say it with a micro-batch a step."""
    arrivals = [a for taken in takers for a in taken]
    count, clips = len(arrivals), sum(a.clips for a in arrivals)
    waited, slept = sum(a.waited_s for a in arrivals), sum(a.slept_s for a in arrivals)
    timings = [a.timing for a in arrivals if a.timing is not None]
    spent_s = sum(t.decode_s for t in timings)
    known_s = spent_s + sum(t.idle_s for t in timings)
    blocks = len({(place, a.made_s) for place, taken in enumerate(takers) for a in taken})
    return Feeding(
        steps=count,
        step_ms=1000 * (waited + slept) / count,
        wait_ms=1000 * waited / count,
        clips_per_s=len(takers) * clips / (waited + slept),
        transfer_ms=1000 * sum(a.transfer_s for a in arrivals) / count,
        blocks_per_s=len(takers) * blocks / (waited + slept),
        decode_ms=1000 * spent_s / clips if timings else None,
        decode_cpu_ms=1000 * sum(t.cpu_s for t in timings) / clips if timings else None,
        read_ms=1000 * sum(t.read_s for t in timings) / clips if timings else None,
        read_mb=sum(t.read_bytes for t in timings) / clips / 1e6 if timings else None,
        busy_share=spent_s / known_s if known_s else None,
        is_endless=is_endless,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One of several, in each of which everything is measured once, in turn."""

    alone: Rate
    """Decoders with nothing behind them."""
    stream: Rate
    loader: Rate
    first_s: float
    """From the stream's start to its first micro-batch."""
    waits: dict[float, Waits]
    """By capacity over demand, for DEMANDS."""
    fed: Feeding
    """Of the trainers that take without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRound:
    """One round with slow clips among the others."""

    capacity: float
    as_set: Waits
    off: Waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement of a growth."""

    at: int
    stream: float
    """Clips per second."""
    alone: float | None
    """Decoders with nothing behind them; none: the same as without the growth."""
    first_s: float
    is_crowded: bool = False
    """More processes than cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """How fast blocks without pixels go to trainers that drop them."""

    trainers: int
    block: int
    """Micro-batches in each."""
    blocks_per_s: float
    clips_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All of it; a part that was not asked for is empty."""

    decoders: int
    workers: int
    micro_batch: int
    block: int
    prefetch: int
    clip_bytes: int
    cores: int
    rounds: list[Round] = field(default_factory=list[Round])
    slow: list[SlowRound] = field(default_factory=list[SlowRound])
    growth: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    ceiling: list[Ceiling] = field(default_factory=list[Ceiling])
    loads: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """Load average before and after each part."""

    @property
    def of_alone(self) -> Spread | None:
        """The stream's rate over that of decoders alone."""
        return spread([r.stream.clips_per_s / r.alone.clips_per_s for r in self.rounds])

    @property
    def of_loader(self) -> Spread | None:
        """The stream's rate over that of PyTorch's DataLoader."""
        return spread([r.stream.clips_per_s / r.loader.clips_per_s for r in self.rounds])

    def wait_share(self, factor: float) -> Spread | None:
        """Share of the step's time, where capacity is `factor` x demand."""
        return spread([r.waits[factor].share for r in self.rounds])


def figures(measured: Measured) -> dict[str, Any]:
    """All of it as plain data, with the medians."""
    medians = {
        "stream_over_alone": measured.of_alone,
        "stream_over_loader": measured.of_loader,
        **{f"wait_share_at_{factor:g}": measured.wait_share(factor) for factor in DEMANDS},
        "slow_wait_share": spread([r.as_set.share for r in measured.slow]),
        "slow_wait_share_prefetch_off": spread([r.off.share for r in measured.slow]),
    }
    return {"medians": {name: asdict(value) for name, value in medians.items() if value}, **asdict(measured)}

"""Steps of ours in turn with the same steps of a peer, and what PyTorch's own matrix product does meanwhile."""

import math
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from rayjepa.bench.clock import Clock
from rayjepa.bench.step_ours import INPUTS, Ours, Taken
from rayjepa.bench.step_peer import HfStep, why_not
from rayjepa.config import RunConfig
from rayjepa.model import build

OURS, THEIRS = "rayjepa", "transformers layers"
WARM_UP = 3
"""Steps before the first that is timed: allocators, compilers, and AdamW's moments are made in them."""
MATMUL_FLOPS = {"cpu": 2e9, "cuda": 2e13}
"""Operations in one measurement of the matrix product: tens of milliseconds."""
AGREES = {"fp32": 1e-5, "bf16": 1e-2}
"""Relative difference of the two first losses above which the peer does not do the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One step of one side."""

    round: int
    entrant: str
    taken: Taken
    matmul: float
    """FLOP/s of a matrix product of the step's kind, measured in the same round."""

    @property
    def whole_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.taken.parts.values())

    @property
    def learning_s(self) -> float:
        """Seconds of all parts but the inputs, which both sides are given."""
        return without_inputs(self.taken.parts)

    @property
    def learning_cpu_s(self) -> float:
        """The same in CPU seconds."""
        return without_inputs(self.taken.cpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All rounds."""

    run: RunConfig
    device: str
    """As PyTorch calls it."""
    parameters: int
    readings: tuple[Reading, ...]
    absent: str
    """Why there is no peer; empty: there is one."""
    syncs: int
    """Times that the host waits for the device in one step, views and masks left out."""
    memory: int
    """Bytes: the most that PyTorch held on the GPU, or that this process had of the machine's, without the peer."""

    @property
    def clips(self) -> int:
        """Clips of one step."""
        return self.run.train.clips

    def of(self, entrant: str) -> list[Reading]:
        """The readings of one side, by round."""
        return [reading for reading in self.readings if reading.entrant == entrant]


def without_inputs(parts: Mapping[str, float]) -> float:
    """Sum over the parts but the inputs'."""
    return sum(seconds for part, seconds in parts.items() if part not in INPUTS)


def measure(run: RunConfig, *, rounds: int, device: torch.device, say: Callable[[str], None]) -> Measured:
    """Time `rounds` steps of `run`, one rank's share, in turn with the same steps of the peer if there can be one.

    Raises:  RuntimeError if the first losses of the two differ.
    """
    torch.set_num_threads(run.train.threads)
    clock = Clock(device)
    ours = Ours(run, device=device, clock=clock)
    say(f"{WARM_UP} steps to warm up")
    warm = [ours.take(step).loss for step in range(WARM_UP)]
    memory, syncs = _peak(device), ours.syncs(WARM_UP)
    peer, absent = _peer(run, device=device, clock=clock)
    if peer is not None:
        for step, loss in enumerate(warm):
            theirs = _theirs(peer, ours, step, clock=clock).loss
            if step == 0:
                _require_same(loss, theirs, run)
        _theirs(peer, ours, WARM_UP, clock=clock)
    readings: list[Reading] = []
    for number in range(rounds):
        matmul = matmul_speed(run, device=device)
        turns: list[tuple[str, Callable[[int], Taken]]] = [(OURS, ours.take)]
        if peer is not None:
            turns.append((THEIRS, partial(_theirs, peer, ours, clock=clock)))
        for entrant, turn in reversed(turns) if number % 2 else turns:
            taken = turn(WARM_UP + 1 + number)
            readings.append(Reading(round=number, entrant=entrant, taken=taken, matmul=matmul))
        say(f"round {number + 1} of {rounds}")
    return Measured(
        run=run,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        parameters=sum(p.numel() for p in ours.engine.jepa.parameters()),
        readings=tuple(readings),
        absent=absent,
        syncs=syncs,
        memory=memory,
    )


def _peer(run: RunConfig, *, device: torch.device, clock: Clock) -> tuple[HfStep | None, str]:
    """The peer, with the weights that a run begins with; or why there is none."""
    if absent := why_not(run):
        return None, absent
    try:
        return HfStep(run, build(run), device=device, clock=clock), ""
    except ImportError as error:
        return None, str(error)


def _theirs(peer: HfStep, ours: Ours, step: int, *, clock: Clock) -> Taken:
    """The peer's step on the inputs that ours has at that step."""
    inputs, counts = ours.inputs(step)
    clock.start()
    loss = peer.step(inputs, **ours.rates(step))
    parts, cpu = clock.stop()
    return Taken(parts=parts, cpu=cpu, loss=float(loss), flops=ours.flops(counts))


def _require_same(ours: float, theirs: float, run: RunConfig) -> None:
    if not math.isclose(ours, theirs, rel_tol=AGREES[run.train.precision]):
        raise RuntimeError(
            f"the first loss is {ours:.8g} here and {theirs:.8g} with transformers' layers, from the same weights, "
            f"clips and masks: these are not the same steps, and their times say nothing. Report it with `pip freeze`"
        )


def matmul_speed(run: RunConfig, *, device: torch.device) -> float:
    """FLOP/s of PyTorch's matrix product in the shape of an MLP's first layer over all tokens of a micro-batch."""
    rows, width = run.micro_batch * math.prod(run.grid), run.model.width
    hidden = round(width * run.model.mlp_ratio)
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    x, weight = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, width), (width, hidden)))
    each = 2.0 * rows * width * hidden
    times = max(1, round(MATMUL_FLOPS[device.type] / each))
    out = x @ weight
    clock = Clock(device)
    clock.start()
    for _ in range(times):
        torch.mm(x, weight, out=out)
    parts, _ = clock.stop()
    return times * each / sum(parts.values())


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

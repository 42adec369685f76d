"""What a run will need, by arithmetic alone: FLOPs, memory of a rank, clips to decode, storage, hours.

Nothing is started, and nothing but the configuration is imported.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rayjepa.config import Phase, RunConfig, Stream
from rayjepa.train.footprint import ENGINES, Counts, Engine, Memory, activations, encoded, engine_of, memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Peak rates of dense matrix products in FLOP/s, and memory in bytes, as the vendor states them."""

    name: str
    bf16: float
    fp32: float
    memory: float


# Dense rates: data sheets print twice that for sparse matrices. A sheet's GB is taken as 1e9 bytes, which is some 7 %
# below what most of them have: that much goes to CUDA's context and NCCL.
GPUS = {
    # NVIDIA A100 80GB data sheet (SXM): BF16 Tensor Core 312, FP32 19.5 TFLOP/s, 80 GB.
    "a100": Gpu(name="A100 80GB", bf16=312e12, fp32=19.5e12, memory=80e9),
    # NVIDIA H100 data sheet (SXM): BF16 1979 with sparsity, FP32 67 TFLOP/s, 80 GB.
    "h100": Gpu(name="H100 SXM", bf16=989e12, fp32=67e12, memory=80e9),
    # NVIDIA H200 data sheet (SXM): the H100's rates, 141 GB.
    "h200": Gpu(name="H200 SXM", bf16=989e12, fp32=67e12, memory=141e9),
    # NVIDIA HGX B200 data sheet, an eighth of it: BF16 36 PFLOP/s with sparsity, FP32 600 TFLOP/s, 1.44 TB.
    "b200": Gpu(name="B200", bf16=2250e12, fp32=75e12, memory=180e9),
    # NVIDIA L40S data sheet: BF16 362.05, FP32 91.6 TFLOP/s, 48 GB.
    "l40s": Gpu(name="L40S", bf16=362e12, fp32=91.6e12, memory=48e9),
}

# CPU seconds of one core for a clip of 16 frames at 4 fps, cropped and scaled to 256 px I420: our own decoder on H.264,
# one shared Xeon core with AVX-512, 2026-11-20. `rayjepa bench decode` measures them anew, on the machine at hand.
DECODE_S = {
    "256p, a key frame every 16 (`rayjepa transcode`)": 0.020,
    "360p, a key frame every 60": 0.065,
    "720p, a key frame every 60": 0.235,
    "1080p, a key frame every 60": 0.521,
}
DECODE_DEFAULT = "360p, a key frame every 60"
# A clip of 64 frames costs 3.55 times one of 16 (same measurement): cost goes with frames to this power.
DECODE_POWER = math.log(3.55) / math.log(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations for one clip; a forward pass each, but for the sums."""

    target: float
    context: float
    predictor: float
    recomputed: float
    """What train.checkpoint_blocks would compute twice: the blocks of encoder and predictor."""

    @property
    def model(self) -> float:
        """Forward of all, backward (twice a forward) of what is trained."""
        return self.target + 3 * (self.context + self.predictor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """All of it, for one run on one kind of GPU."""

    gpu: Gpu
    mfu: float
    encoder: int
    """Parameters."""
    predictor: int
    """Parameters."""
    flops: Flops
    """Means over the drawn steps."""
    hardware_flops: float
    """What is computed for a clip, blocks that train.checkpoint_blocks computes twice included."""
    counts: tuple[tuple[float, float], ...]
    """Mean context and target tokens of each mask type."""
    draws: int
    memory: dict[Engine, Memory]
    chosen: Engine
    clips_per_s: float
    """Of all ranks, at `mfu`."""
    clips_per_core_s: float
    """Decoded by one core, as assumed or given."""
    clip_bytes: int
    checkpoint_bytes: int
    hours: float
    cost: float | None

    @property
    def fits(self) -> bool:
        """Whether the estimated peak is within the GPU's memory."""
        return self.memory[self.chosen].peak <= self.gpu.memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one stream of one phase needs, as if the phase had no other: a run of one of each has one part."""

    phase: Phase
    stream: Stream
    share: float
    """Of the phase's clips."""
    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBudget:
    """What a phase needs; each of its figures is over the clips of all its streams."""

    phase: Phase
    parts: tuple[Part, ...]

    @property
    def clips_per_s(self) -> float:
        """Of all ranks."""
        return 1 / sum(part.share / part.budget.clips_per_s for part in self.parts)

    @property
    def decode_cores(self) -> float:
        """Cores that decode as fast."""
        return self.clips_per_s * sum(part.share / part.budget.clips_per_core_s for part in self.parts)

    @property
    def clip_bytes(self) -> float:
        """Mean size of a clip as it is shipped."""
        return sum(part.share * part.budget.clip_bytes for part in self.parts)

    @property
    def flops(self) -> float:
        """Mean of a clip, backward included."""
        return sum(part.share * part.budget.flops.model for part in self.parts)

    @property
    def hours(self) -> float:
        """Of all its steps."""
        return sum(part.share * part.budget.hours for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBudget:
    """What a run needs, phase by phase."""

    phases: tuple[PhaseBudget, ...]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "RunBudget":
        """From its parts, in the order of the phases."""
        names = dict.fromkeys(part.phase.name for part in parts)
        groups = [tuple(part for part in parts if part.phase.name == name) for name in names]
        return cls(phases=tuple(PhaseBudget(phase=group[0].phase, parts=group) for group in groups))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every stream of every phase."""
        return tuple(part for phase in self.phases for part in phase.parts)

    @property
    def largest(self) -> Part:
        """The part that needs most memory: a GPU must hold it."""
        return max(self.parts, key=lambda part: part.budget.memory[part.budget.chosen].peak)

    @property
    def hours(self) -> float:
        """Of all phases."""
        return sum(phase.hours for phase in self.phases)

    @property
    def cost(self) -> float | None:
        """Of the GPUs, if their price is known."""
        costs = [part.share * part.budget.cost for part in self.parts if part.budget.cost is not None]
        return sum(costs) if costs else None


def gpu_named(name: str) -> Gpu:
    """The GPU of that name. Raises ValueError that lists all."""
    if name.lower() not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ValueError(f"--gpu {name} is not known; choose one of {', '.join(GPUS)}{hint}")
    return GPUS[name.lower()]


def budget(
    run: RunConfig,
    *,
    encoder: int,
    predictor: int,
    drawn: Sequence[Counts],
    gpu: Gpu,
    mfu: float,
    price: float | None = None,
    clips_per_core_s: float | None = None,
) -> Budget:
    """What `run` needs, with `encoder` and `predictor` parameters and the token counts of some `drawn` steps.

    Units:   `mfu` is model FLOPs over the GPU's peak, in (0, 1]; `price` is of one GPU for an hour.
    Raises:  ValueError if a number is outside its range.
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu} must be in (0, 1]; 0.4 is what good pretraining reaches")
    if price is not None and not 0 <= price < math.inf:
        raise ValueError(f"--price {price} must be at least 0: dollars for one GPU and one hour")
    if clips_per_core_s is not None and not 0 < clips_per_core_s < math.inf:
        raise ValueError(f"--clips-per-core {clips_per_core_s} must be above 0; `rayjepa bench decode` measures it")
    each = [flops(run, counts) for counts in drawn]
    mean = Flops(
        target=each[0].target,
        context=_mean([f.context for f in each]),
        predictor=_mean([f.predictor for f in each]),
        recomputed=_mean([f.recomputed for f in each]),
    )
    busiest = max(activations(run, counts, encoder=encoder, predictor=predictor) for counts in drawn)
    clips_per_s = run.ranks * mfu * (gpu.bf16 if run.train.precision == "bf16" else gpu.fp32) / mean.model
    hours = run.samples / clips_per_s / 3600
    height, width = run.data.canvas
    return Budget(
        gpu=gpu,
        mfu=mfu,
        encoder=encoder,
        predictor=predictor,
        flops=mean,
        hardware_flops=mean.model + (mean.recomputed if run.train.checkpoint_blocks else 0.0),
        counts=tuple(
            (_mean([counts[i][0] for counts in drawn]), _mean([counts[i][1] for counts in drawn]))
            for i in range(len(drawn[0]))
        ),
        draws=len(drawn),
        memory={
            engine: memory(engine, run, encoder=encoder, predictor=predictor, activations=busiest) for engine in ENGINES
        },
        chosen=engine_of(run),
        clips_per_s=clips_per_s,
        clips_per_core_s=clips_per_core_s or 1 / decode_s(run, DECODE_DEFAULT),
        clip_bytes=run.data.frames * height * width * 3 // (1 if run.data.pixels == "rgb" else 2),
        checkpoint_bytes=checkpoint_bytes(encoder, predictor),
        hours=hours,
        cost=None if price is None else price * hours * run.ranks,
    )


def checkpoint_bytes(encoder: int, predictor: int) -> int:
    """Size of one checkpoint of so many parameters, whatever the ranks.

    It has the master and two moments of what is trained, and the target, all float32.
    """
    return 12 * (encoder + predictor) + 4 * encoder


def flops(run: RunConfig, counts: Counts) -> Flops:
    """Operations for one clip in a step with these token counts.

    Counted are matrix products, at two operations for a multiplication with addition; norms, softmax, rotations, EMA
    and optimizer are not. A gradient of the pixels, which nothing needs, counts as if it were taken.
    Source:  the usual count for a transformer: 8 n d^2 + 4 n d h + 4 n^2 d for a block of width d and hidden width h on
             n tokens, as V-JEPA 2 (arXiv:2506.09985) has it; that tokenises once per mask, we once per clip.
    """
    model, small = run.model, run.predictor
    tokens, patch = math.prod(run.grid), 3 * min(model.tubelet, run.data.frames) * model.patch_px**2
    embed = 2.0 * tokens * patch * model.width
    seen = sum(model.depth * _block(context, model.width, model.mlp_ratio) for context in encoded(run, counts))
    guessed = sum(small.depth * _block(c + t, small.width, small.mlp_ratio) for c, t in counts)
    ends = sum(2.0 * (c + t) * model.width * small.width for c, t in counts)
    return Flops(
        target=embed + model.depth * _block(tokens, model.width, model.mlp_ratio),
        context=embed + seen,
        predictor=guessed + ends,
        recomputed=seen + guessed,
    )


def decode_s(run: RunConfig, source: str) -> float:
    """CPU seconds of one core for a clip of `run` from such a video. Frame rate and size of the clip count as equal."""
    return DECODE_S[source] * (run.data.frames / 16) ** DECODE_POWER


def _block(tokens: int, width: int, mlp_ratio: float) -> float:
    hidden = round(width * mlp_ratio)
    return 8.0 * tokens * width**2 + 4.0 * tokens * width * hidden + 4.0 * tokens**2 * width


def _mean(values: Sequence[int | float]) -> float:
    return sum(values) / len(values)

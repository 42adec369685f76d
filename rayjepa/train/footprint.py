"""Memory of one rank, by arithmetic: model state of each engine, what it passes gradients through, activations.

O stands for the trained parameters (encoder and predictor), E for the encoder's, which are the target's too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rayjepa.config import RunConfig

Counts = Sequence[tuple[int, int]]
"""Tokens of (context, target) of each mask type in one step."""
Engine = Literal["plain", "zero0", "zero1", "zero2", "zero3"]
ENGINES: tuple[Engine, ...] = ("plain", "zero0", "zero1", "zero2", "zero3")
LIVE = 1_000_000_000
"""Elements that DeepSpeed lets stay gathered at stage 3 (its default): the whole of most models, until backward."""
REDUCE_BUCKET, GATHER_BUCKET = 100_000_000, 200_000_000
"""Elements that DeepSpeed reduces and gathers at once; its default of 5e8 costs 2 GB in float32."""
PLAIN_BUCKET = 6_250_000
"""Elements that the plain engine averages at once: 25 MB of float32, of which the last waits for backward's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that one rank holds on its device, when most of each is held."""

    parameters: float
    master: float
    """A second copy of the parameters that the optimizer steps: DeepSpeed keeps one although both are float32."""
    gradients: float
    moments: float
    target: float
    buckets: float
    """What gradients pass through on their way to the other ranks, or parameters from them."""
    update: float
    """Temporaries of the all-gather after the optimizer's step, when activations are gone; a fused step has none."""
    activations: float
    """Estimated; see `activations`."""

    @property
    def state(self) -> float:
        """Parameters, master, gradients, moments and target: what tests/test_budget.py measures."""
        return self.parameters + self.master + self.gradients + self.moments + self.target

    @property
    def peak(self) -> float:
        """The larger of backward's and the update's."""
        return self.state + max(self.buckets + self.activations, self.update)


def encoded(run: RunConfig, counts: Counts) -> list[int]:
    """Tokens of each context that is encoded in one step: mask types of kind ijepa have one context for all."""
    contexts = [context for context, _ in counts]
    return contexts[:1] if run.masks.kind == "ijepa" else contexts


def engine_of(run: RunConfig) -> Engine:
    """The engine that the run is set to."""
    return "plain" if run.train.engine == "plain" else ENGINES[1 + run.zero.stage]


def memory(engine: Engine, run: RunConfig, *, encoder: int, predictor: int, activations: float) -> Memory:
    """Bytes of one of run.ranks ranks with this engine.

    Source:  DeepSpeed 0.19.8, runtime/zero: stages 1 and 2 step a float32 copy of a rank's partition; the gradients of
             the partition are copied once more, into one flat tensor, before the optimizer steps it. Stage 1 keeps
             all gradients until the last micro-batch.
    """
    trained, ranks = encoder + predictor, run.ranks
    whole, part, bucket = 4.0 * trained, 4.0 * trained / ranks, 4.0 * REDUCE_BUCKET
    match engine:
        case "plain" | "zero0":
            # The plain engine's gradients lie in its buckets.
            flat = 4.0 * min(trained, REDUCE_BUCKET) if ranks > 1 and engine == "zero0" else 0.0
            return Memory(
                parameters=whole,
                master=0.0,
                gradients=whole,
                moments=2 * whole,
                target=4.0 * encoder,
                buckets=flat,
                update=0.0,
                activations=activations,
            )
        case "zero1" | "zero2":
            held = max(whole, whole - bucket + part) if engine == "zero1" else 0.0
            return Memory(
                parameters=whole,
                master=part,
                gradients=max(held, 2 * part),
                moments=2 * part,
                target=4.0 * encoder,
                buckets=bucket,
                update=4.0 * min(trained, GATHER_BUCKET) if ranks > 1 else 0.0,
                activations=activations,
            )
        case "zero3":
            return Memory(
                parameters=part,
                master=part,
                gradients=2 * part,
                moments=2 * part,
                target=4.0 * encoder / ranks,
                buckets=bucket + 4.0 * min(trained, LIVE),
                update=0.0,
                activations=activations,
            )


def activations(run: RunConfig, counts: Counts, *, encoder: int, predictor: int) -> float:
    """Estimated bytes of one micro-batch at the end of its forward pass, when most is held: not measured on a GPU.

    What PyTorch's autograd keeps for backward of a block of width d and hidden width h, per token, with fused
    attention: the inputs of two norms, three linear layers and the attention (turned queries and keys; values as part
    of the undivided product), and both sides of the GELU: 10 d + 2 h numbers, of which under autocast the norms' 2 d
    have 4 bytes and the rest 2. With train.checkpoint_blocks it is the block's input, and one block in full while it is
    computed again. Under autocast every weight has a copy in bf16 meanwhile. The target needs less, and before.
    """
    half = run.train.precision == "bf16"
    wide, model, small = (2 if half else 4), run.model, run.predictor
    keeps_inputs = run.train.checkpoint_blocks
    total = largest = 0.0
    for part, lengths in ((model, encoded(run, counts)), (small, [sum(pair) for pair in counts])):
        for tokens in lengths:
            block = tokens * (2 * 4 * part.width + wide * (8 * part.width + 2 * round(part.width * part.mlp_ratio)))
            total += part.depth * (tokens * wide * part.width if keeps_inputs else block)
            largest = max(largest, block)
    for context, target in counts:
        # Prediction, target and their difference, and the predictor's ends.
        total += target * (8 + wide) * model.width + context * (4 + wide) * model.width
        total += target * (4 + wide) * small.width
    pixels = 3 * run.data.frames * run.data.size_px**2
    total += pixels * (4 + 2 * half) + 2 * 4 * math.prod(run.grid) * model.width  # views; the target's features, twice
    copies = 2.0 * (encoder + predictor) if half else 0.0
    return run.micro_batch * (total + largest) + copies

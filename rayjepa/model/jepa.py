"""Encoder and predictor wired together: from views and masks to predictions beside their targets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rayjepa import masks
from rayjepa.config import RunConfig, streams_of
from rayjepa.masks import Split
from rayjepa.model.blocks import initialise
from rayjepa.model.predictor import Predictor
from rayjepa.model.vit import Levels, Vit, gather

TARGET_EPS = 1e-5
"""Epsilon of the target's normalisation (V-JEPA; not the blocks' 1e-6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One prediction task: what was guessed of the hidden tokens, and what they are."""

    name: str
    prediction: Float[Tensor, "B M D"]
    target: Float[Tensor, "B M D"]
    weight: Float[Tensor, "B M"] | None = None
    """How much each token counts; none: all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """All prediction tasks of one micro-batch, to be scored by an objective."""

    terms: tuple[Term, ...]
    index: Int64[Tensor, " B"] | None = None
    """Sample index of each clip in the run, for objectives that compare clips."""


class Jepa(nn.Module):
    """What is trained: the encoder, and the predictor of the target's features.

    Raises:  ValueError if a stream's clips do not fit the position code of model.sincos_grid.
    """

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        streams = [stream.run for stream in streams_of(run)]
        self.tasks = tuple(masks.names(stream.masks) for stream in streams)
        self.is_token_by_stream = run.predictor.mask_token == "stream"
        recompute, compiled = run.train.checkpoint_blocks, run.train.compile_blocks
        self.encoder = Vit(
            run.model,
            grid=run.grid,
            images=any(stream.data.frames == 1 for stream in streams),
            checkpoint_blocks=recompute,
            compile_blocks=compiled,
        )
        self.predictor = Predictor(
            run.predictor,
            model=run.model,
            mask_tokens=len(streams) if self.is_token_by_stream else max(map(len, self.tasks)),
            grid=run.grid,
            checkpoint_blocks=recompute,
            compile_blocks=compiled,
        )
        self.init_rescale = run.model.init_rescale
        for stream in streams:  # to say now that one does not fit
            self.encoder.position.places(stream.grid, torch.device("meta"))

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        levels: Levels,
        index: Int64[Tensor, " B"] | None = None,
        *,
        stream: int = 0,
    ) -> Prediction:
        """One term per split: the hidden tokens as guessed from the seen ones, beside the target's normalised features.

        Clips, all of one stream, are tokenised once for all splits, and encoded once for splits in a row that share
        their context. `levels` are the target's features of the whole clips; each token is normalised over its
        features, without weights, before the hidden ones are gathered. Tokens that fill up a split count for nothing.
        Source:  V-JEPA (arXiv:2404.08471), section 3.1, equation 1. A mask token for each task, as there, or for each
                 stream, as V-JEPA 2 has one for each clip length.
        """
        tasks = self.tasks[stream]
        assert len(splits) == len(tasks), f"{len(splits)} splits for the mask types {tasks}"
        tokens, at = self.encoder.tokenise(views)
        truth = F.layer_norm(levels[-1].float(), levels[-1].shape[-1:], eps=TARGET_EPS)
        terms: list[Term] = []
        context = encoded = None
        for task, (name, split) in enumerate(zip(tasks, splits, strict=True)):
            if context is None or split.context is not encoded:
                seen = gather(tokens, split.context)
                context = self.encoder(seen, at[split.context], valid=split.context_valid)[-1]
                encoded = split.context
            prediction = self.predictor(
                context,
                at[split.context],
                at[split.target],
                mask_token=stream if self.is_token_by_stream else task,
                valid=_valid(split),
            )
            weight = None if split.target_valid is None else _shares(split.target_valid)
            terms.append(Term(name=name, prediction=prediction, target=gather(truth, split.target), weight=weight))
        return Prediction(terms=tuple(terms), index=index)

    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`; the encoder first, so that it does not depend on the predictor's size."""
        generator = torch.Generator().manual_seed(seed)
        initialise(self.encoder, generator=generator, rescale=self.init_rescale)
        initialise(self.predictor, generator=generator, rescale=self.init_rescale)
        for token in self.predictor.mask_tokens:
            nn.init.zeros_(token)


def _valid(split: Split) -> Bool[Tensor, "B N"] | None:
    """Which places of context and target, one after the other, are tokens; none: all."""
    if split.context_valid is None and split.target_valid is None:
        return None
    pairs = ((split.context, split.context_valid), (split.target, split.target_valid))
    return torch.cat([torch.ones_like(ids, dtype=torch.bool) if ok is None else ok for ids, ok in pairs], dim=1)


def _shares(valid: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Weights by which every clip counts the same, and so does each of a clip's tokens."""
    return valid / valid.sum(dim=1, keepdim=True)


def build(run: RunConfig) -> Jepa:
    """The untrained model of `run` on the CPU, in float32: a function of `run.seed`, whatever was drawn before.

    Nothing is drawn from PyTorch's global generator.
    """
    with torch.device("meta"):
        jepa = Jepa(run)
    jepa = jepa.to_empty(device="cpu")
    jepa.initialise(run.seed % 2**63)  # a seed of PyTorch's generator has 64 bits and a sign
    return jepa


def sizes(run: RunConfig) -> tuple[int, int]:
    """Trainable parameters of the encoder and of the predictor; no memory is taken."""
    with torch.device("meta"):
        jepa = Jepa(run)
    encoder, predictor = (sum(p.numel() for p in part.parameters()) for part in (jepa.encoder, jepa.predictor))
    return encoder, predictor

"""Encoder and predictor wired together: from views and masks to predictions beside their targets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rayjepa import masks
from rayjepa.config import RunConfig
from rayjepa.masks import Split
from rayjepa.model.predictor import Predictor
from rayjepa.model.vit import Levels, Vit, gather, initialise

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
    """What is trained: the encoder, and the predictor of the target's features."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        self.names = masks.names(run.masks)
        self.encoder = Vit(run.model, checkpoint_blocks=run.train.checkpoint_blocks)
        self.predictor = Predictor(
            run.predictor,
            encoder_width=run.model.width,
            mask_types=len(self.names),
            pairing=run.model.rope_pairing,
            checkpoint_blocks=run.train.checkpoint_blocks,
        )

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        levels: Levels,
        index: Int64[Tensor, " B"] | None = None,
    ) -> Prediction:
        """One term per split: the hidden tokens as guessed from the seen ones, beside the target's normalised features.

        Clips are tokenised once for all splits. `levels` are the target's features of the whole clips; each token
        is normalised over its features, without weights, before the hidden ones are gathered.
        Source:  V-JEPA (arXiv:2404.08471), section 3.1, equation 1.
        """
        assert len(splits) == len(self.names), f"{len(splits)} splits for the mask types {self.names}"
        tokens, at = self.encoder.patch_embed(views)
        truth = F.layer_norm(levels[-1].float(), levels[-1].shape[-1:], eps=TARGET_EPS)
        terms: list[Term] = []
        for mask_type, (name, split) in enumerate(zip(self.names, splits, strict=True)):
            context_at, target_at = at[split.context], at[split.target]
            context = self.encoder(gather(tokens, split.context), context_at)[-1]
            prediction = self.predictor(context, context_at, target_at, mask_type=mask_type)
            terms.append(Term(name=name, prediction=prediction, target=gather(truth, split.target)))
        return Prediction(terms=tuple(terms), index=index)

    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`; the encoder first, so that it does not depend on the predictor's size."""
        generator = torch.Generator().manual_seed(seed)
        initialise(self.encoder, generator=generator)
        initialise(self.predictor, generator=generator)
        for token in self.predictor.mask_tokens:
            nn.init.zeros_(token)


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

"""The fixed list of clips that health looks at: decoded once, kept as bytes, each rank its share."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import torch

from rayjepa.config import RunConfig
from rayjepa.data.batch import ClipBatch
from rayjepa.data.clip import ClipSpec
from rayjepa.data.decoder import Decoder
from rayjepa.data.tape import Tape
from rayjepa.health.features import clip_features, gathered, most_passes, random_target, share
from rayjepa.health.gauges import examine
from rayjepa.model import Target

log = logging.getLogger(__name__)


class HeldOut:
    """Examines targets on the same clips all through a run, beside the same encoder with random weights.

    Of a run with streams, the clips are of the first of videos, or else of the first.
    """

    def __init__(self, run: RunConfig, tape: Tape, *, rank: int, world: int, device: torch.device) -> None:
        wanted = max(run.health.clips, 2 * run.model.width)
        specs = tape.held_out(wanted)
        self.run, self.clips, self.world, self.device = tape.examined.run, len(specs), world, device
        self.is_train = tape.held_out_is_train
        self.stream = tape.examined.name if run.streams else None
        """Whose clips these are, if the run has streams."""
        if rank == 0 and (self.clips < wanted or self.is_train):
            source = "training videos, since none is held out" if self.is_train else "held-out videos"
            of = f" of stream {self.stream}" if self.stream else ""
            log.warning("health looks at %d of %d clips wanted%s, of %s", self.clips, wanted, of, source)
        mine = share(specs, rank=rank, world=world)
        self.batches = list(_decoded(self.run, mine, specs))
        self.passes = most_passes(len(specs), world=world, batch=run.health.batch)
        floor = examine(self._features(random_target(run).to(device)))
        rankme, std = floor["collapse/rankme"], floor["collapse/std_mean"]
        self.floor = {"collapse/rankme_floor": rankme, "collapse/std_floor": std}

    def examine(self, target: Target) -> dict[str, float]:
        """The gauges of `target`, their floors and ceiling, the same on every rank; all ranks call it together."""
        return examine(self._features(target)) | self.floor

    def _features(self, target: Target) -> torch.Tensor:
        features = clip_features(target, self.batches, self.run, device=self.device, passes=self.passes)
        return gathered(features, self.world)


def _decoded(run: RunConfig, mine: Sequence[ClipSpec], everyone: tuple[ClipSpec, ...]) -> Iterator[ClipBatch]:
    def substitute(index: int, attempt: int) -> ClipSpec:
        """Another clip of the list in place of one that fails: the same one on every resume."""
        return dataclasses.replace(everyone[(index + attempt) % len(everyone)], index=index, attempt=attempt)

    with Decoder(run.data) as decoder:
        for at in range(0, len(mine), run.health.batch):
            decoded = decoder.clips(mine[at : at + run.health.batch], substitute)
            yield ClipBatch(
                index=torch.tensor([spec.index for spec in decoded.specs]),
                pixels=torch.as_tensor(decoded.pixels),
                layout=torch.as_tensor(decoded.layout),
                specs=tuple(decoded.specs),
                failures=decoded.failures,
            )

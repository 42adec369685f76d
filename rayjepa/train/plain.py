"""The engine without DeepSpeed: one process, or data parallel with averaged gradients."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from rayjepa.config import RunConfig
from rayjepa.masks import Split
from rayjepa.model import Jepa, Prediction, make_target
from rayjepa.train.engine import Step, autocast, encoder_tensors, join_group, ranks, share_weights, to_device
from rayjepa.train.footprint import PLAIN_BUCKET
from rayjepa.train.optim import Guard, adam_state, make_optimizer, set_rates
from rayjepa.train.pieces import Piece, read_pieces, untrained, whole, write_shard


class PlainEngine:
    """Float32 parameters, replicated; gradients are averaged in one go after the last backward of a step.

    Buckets are in the parameters' own order and never change, so that a resumed run adds in the order of one that ran
    through, at any world size. That gives up the overlap with backward, which DistributedDataParallel has.
    """

    def __init__(self, run: RunConfig, jepa: Jepa, *, device: torch.device) -> None:
        self.run, self.device = run, device
        self._made_group = join_group(device, always=False)
        self.rank, self.world = ranks()
        self.jepa = share_weights(jepa.to(device))
        self.target = make_target(self.jepa.encoder)
        self.optimizer = make_optimizer(self.jepa, run.optim)
        self.guard = Guard(max_norm=run.optim.max_norm, device=device, world=self.world)

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        index: Int64[Tensor, " B"] | None = None,
    ) -> Prediction:
        """Predictions beside the target's features."""
        with torch.no_grad(), autocast(self.run, self.device):
            levels = self.target(views)
        with autocast(self.run, self.device):
            return self.jepa(views, to_device(splits, self.device), levels, index)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of `loss`."""
        self.guard.note(loss)
        loss.backward()

    def step(self, *, lr: float, weight_decay: float, momentum: float, stop: bool = False) -> Step:
        """Average, check, clip, update, move the target; or refuse, and change nothing."""
        gradients = self._gradients()
        if self.world > 1:
            _average(gradients, self.world)
        self.guard.agree(norm=torch.nn.utils.get_total_norm(gradients), stop=stop)
        norm = self.guard.norm
        refused = self.guard.verdict(norm)
        if refused is None:
            if self.run.optim.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(
                    list(self.jepa.parameters()), self.run.optim.clip, torch.tensor(norm, device=self.device)
                )
            set_rates(self.optimizer, lr=lr, weight_decay=weight_decay)
            self.optimizer.step()
            self.target.update_(encoder_tensors(self.jepa), momentum=momentum)
        self.optimizer.zero_grad()
        return Step(refused=refused, grad_norm=norm, stop=self.guard.stop)

    def save(self, folder: Path) -> None:
        """Write this rank's share of the state."""
        write_shard(folder, self._pieces(), rank=self.rank, world=self.world)

    def load(self, folder: Path) -> None:
        """Take the whole state from `folder`."""
        read_pieces(folder, list(self._pieces()))

    def close(self) -> None:
        """Leave the process group, if this engine made it."""
        if self._made_group:
            dist.destroy_process_group()

    def _gradients(self) -> list[Tensor]:
        """Gradients in the parameters' order; zeros where there is none, as in ZeRO's flat buffers."""
        found: list[Tensor] = []
        for parameter in self.jepa.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                found.append(parameter.grad)
        return found

    def _pieces(self) -> Iterator[Piece]:
        for name, parameter in self.jepa.named_parameters():
            if parameter.requires_grad:
                state = adam_state(self.optimizer, parameter)
                yield whole("master", name, parameter)
                yield whole("exp_avg", name, state["exp_avg"])
                yield whole("exp_avg_sq", name, state["exp_avg_sq"])
                yield whole("step", name, state["step"])
        yield from untrained(self.jepa, self.target)


def _average(gradients: list[Tensor], world: int) -> None:
    """Replace each gradient by its mean over ranks, in buckets."""
    bucket: list[Tensor] = []
    for place, gradient in enumerate(gradients):
        bucket.append(gradient)
        if place + 1 == len(gradients) or sum(g.numel() for g in bucket) >= PLAIN_BUCKET:
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            flat.div_(world)
            parts = flat.split([g.numel() for g in bucket])
            for part, own in zip(parts, bucket, strict=True):
                own.copy_(part.view_as(own))
            bucket = []

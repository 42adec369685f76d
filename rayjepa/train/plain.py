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
from rayjepa.train.averaging import Averager
from rayjepa.train.engine import Step, autocast, encoder_tensors, join_group, ranks, share_weights, to_device
from rayjepa.train.footprint import PLAIN_BUCKET
from rayjepa.train.optim import Guard, adam_state, clip_factors, joint_norm, make_optimizer, part_norms, set_rates
from rayjepa.train.pieces import Piece, Tensors, fill_pieces, read_pieces, untrained, whole, write_shard


class PlainEngine:
    """Float32 parameters, replicated; gradients are averaged while the last backward of a step runs."""

    def __init__(self, run: RunConfig, jepa: Jepa, *, device: torch.device) -> None:
        self.run, self.device = run, device
        self._made_group = join_group(device, always=False)
        self.rank, self.world = ranks()
        self.jepa = share_weights(jepa.to(device))
        self.target = make_target(self.jepa.encoder)
        self.optimizer = make_optimizer(self.jepa, run.optim)
        self.guard = Guard(max_norm=run.optim.max_norm, device=device, world=self.world)
        self._averager = Averager(_sent(jepa), world=self.world, bucket=PLAIN_BUCKET) if self.world > 1 else None
        self._micro = 0

    def forward(
        self,
        views: Float[Tensor, "B 3 frames height width"],
        splits: tuple[Split, ...],
        index: Int64[Tensor, " B"] | None = None,
        *,
        stream: int = 0,
    ) -> Prediction:
        """Predictions beside the target's features."""
        with torch.no_grad(), autocast(self.run, self.device):
            levels = self.target(views)
        with autocast(self.run, self.device):
            return self.jepa(views, to_device(splits, self.device), levels, index, stream=stream)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradients of `loss`."""
        self.guard.note(loss)
        self._micro += 1
        if self._averager is not None and self._micro == self.run.train.accumulation:
            self._averager.expect_last()
        loss.backward()

    def step(
        self, *, lr: float, weight_decay: float, momentum: float, clip: float | None = None, stop: bool = False
    ) -> Step:
        """Average, check, clip, update, move the target; or refuse, and change nothing."""
        self._micro = 0
        if self._averager is None:
            self._fill_gradients()
        else:
            self._averager.finish()
        self.guard.agree(norms=part_norms(self.jepa, self.run.optim), stop=stop)
        norm = joint_norm(self.guard.norms)
        refused = self.guard.verdict(norm)
        if refused is None:
            self.optimizer.factors = clip_factors(self.guard.norms, clip)
            set_rates(self.optimizer, lr=lr, weight_decay=weight_decay)
            self.optimizer.step()
            self.target.update_(encoder_tensors(self.jepa), momentum=momentum)
        if self._averager is None:
            self.optimizer.zero_grad()
        else:
            self._averager.clear()
        return Step(refused=refused, grad_norm=norm, stop=self.guard.stop)

    def save(self, folder: Path) -> None:
        """Write this rank's share of the state."""
        write_shard(folder, self._pieces(), rank=self.rank, world=self.world)

    def load(self, folder: Path) -> None:
        """Take the whole state from `folder`."""
        read_pieces(folder, list(self._pieces()))

    def adopt(self, tensors: Tensors) -> None:
        """Take parameters and the target from whole tensors."""
        fill_pieces(self._pieces(), tensors)

    def close(self) -> None:
        """Leave the process group, if this engine made it."""
        if self._made_group:
            dist.destroy_process_group()

    def _fill_gradients(self) -> None:
        """Zeros where there is no gradient, as in an averager's buckets and in ZeRO's."""
        for parameter in self.jepa.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _pieces(self) -> Iterator[Piece]:
        for name, parameter in self.jepa.named_parameters():
            if parameter.requires_grad:
                state = adam_state(self.optimizer, parameter)
                yield whole("master", name, parameter)
                yield whole("exp_avg", name, state["exp_avg"])
                yield whole("exp_avg_sq", name, state["exp_avg_sq"])
                yield whole("step", name, state["step"])
        yield from untrained(self.jepa, self.target)


def _sent(jepa: Jepa) -> list[Tensor]:
    """Trained parameters in the order in which an averager has them, the last of which it sends first.

    That is their own order but for mask tokens, which no clip of a micro-batch may use: nothing has to wait for them.
    """
    named = [(name, parameter) for name, parameter in jepa.named_parameters() if parameter.requires_grad]
    return [parameter for name, parameter in sorted(named, key=lambda item: "mask_tokens" not in item[0])]

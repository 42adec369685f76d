"""Parameter groups, AdamW whose step can be refused, and the guard that refuses it."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from rayjepa.config import OptimConfig


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, kernels and mask tokens; not to biases and norms.

    Source:  V-JEPA 2's reference implementation, app/vjepa/utils.py (mask tokens are 3-D there, and decay).
    """
    return not name.endswith("bias") and (parameter.ndim > 1 or "mask_token" in name)


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, in the module's order; `decays` says which group is which."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p) is claim], "decays": claim} for claim in (True, False)
    ]
    return [group for group in groups if group["params"]]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that asks `refuses`, if set, before it changes anything."""

    refuses: Callable[[], bool] | None = None
    overflow = False
    """DeepSpeed reads this at stage 0: the last step was not applied."""

    def step(self, closure: Any = None) -> Any:
        """As AdamW's, or nothing at all."""
        if self.refuses is not None and self.refuses():
            return None
        return super().step(closure)


def make_optimizer(module: nn.Module, cfg: OptimConfig) -> GuardedAdamW:
    """AdamW over `parameter_groups`; learning rate and weight decay are set before each step by `set_rates`."""
    return GuardedAdamW(parameter_groups(module), lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, weight_decay=0.0)


def set_rates(optimizer: Any, *, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate and weight decay in every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def adam_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """Step count and moments of a stepped tensor, made here if there was no step yet.

    A step with learning rate 0 would make them too, and would count.
    """
    state = optimizer.state[tensor]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU, as AdamW keeps it unless fused
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor.data), torch.zeros_like(tensor.data)
    return state


class Guard:
    """Decides, equally on all ranks, whether a step is taken.

    Losses are noted on the device; `agree` is the one collective and the one synchronisation, always made before any
    rank can branch; `verdict` is local after it.
    """

    def __init__(self, *, max_norm: float, device: torch.device, world: int) -> None:
        self.max_norm, self.device, self.world = max_norm, device, world
        self.norm, self.stop = 0.0, False
        self._loss: str | None = None
        self._seen = torch.zeros(2, device=device)

    def note(self, loss: Float[Tensor, ""]) -> None:
        """Remember a loss that is NaN or infinite, until the next `agree`."""
        loss = loss.detach()
        self._seen = torch.maximum(self._seen, torch.stack((loss.isnan(), loss.isinf())).float())

    def agree(self, *, norm: Float[Tensor, ""] | None, stop: bool) -> None:
        """Share what any rank saw: bad losses, the largest gradient norm (none: not known here), the wish to stop."""
        norm = torch.zeros((), device=self.device) if norm is None else torch.nan_to_num(norm.float(), nan=math.inf)
        wish = torch.full((), float(stop), device=self.device)
        shared = torch.stack((*self._seen, norm, wish))
        if self.world > 1:
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        is_nan, is_inf, self.norm, any_stop = shared.tolist()
        self._loss = "loss is nan" if is_nan else "loss is inf" if is_inf else None
        self.stop = any_stop > 0
        self._seen = torch.zeros_like(self._seen)

    def verdict(self, norm: float) -> str | None:
        """Why the step with this gradient norm is refused; none: it may be taken."""
        if self._loss is not None:
            return self._loss
        if not math.isfinite(norm):  # a NaN among the gradients too: engines report either as inf
            return "gradient norm is inf"
        if norm > self.max_norm:
            return f"gradient norm {norm:.6g} is above optim.max_norm={self.max_norm:g}"
        return None

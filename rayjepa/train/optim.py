"""Parameter groups, AdamW whose step can be refused, and the guard that refuses it."""

import math
from collections.abc import Callable, Mapping
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


def part_of(name: str, cfg: OptimConfig) -> str:
    """What a parameter's gradient is clipped with: optim.clip_parts makes one part of all, or of each module's."""
    return name.split(".", maxsplit=1)[0] if cfg.clip_parts == "separate" else "all"


def parameter_groups(module: nn.Module, cfg: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters, those that decay apart from those that do not, and so are the parts; in module's order.

    `part` and `decays` say which group is which.
    """
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name, cfg), decays(name, parameter)), []).append(parameter)
    return [{"params": params, "part": part, "decays": claim} for (part, claim), params in groups.items()]


def part_norms(module: nn.Module, cfg: OptimConfig) -> dict[str, Tensor]:
    """Gradient norm of each part of `module`, on the device."""
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(part_of(name, cfg), []).append(parameter.grad)
    return {part: torch.nn.utils.get_total_norm(own) for part, own in gradients.items()}


def joint_norm(norms: Mapping[str, float]) -> float:
    """Norm of all gradients, of those of the parts."""
    return math.sqrt(sum(norm**2 for norm in norms.values()))


def clip_factors(norms: Mapping[str, float], clip: float | None) -> dict[str, float]:
    """What the gradients of each part above the norm `clip` are multiplied by, to come down to it."""
    return {} if clip is None else {part: clip / (norm + 1e-6) for part, norm in norms.items() if norm > clip}


class GroupNorms:
    """Norms that another optimizer takes of its flat groups, each of one part, and would forget."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts
        self._taken: list[Tensor] = []
        self._found: dict[str, float] = {}

    def kept(self, take: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same function, whose results are kept; it is called once for each group, in their order."""

        def taking(*args: Any, **kwargs: Any) -> Tensor:
            self._taken.append(take(*args, **kwargs))
            return self._taken[-1]

        return taking

    def forget(self) -> None:
        """Make ready for the next step."""
        self._taken, self._found = [], {}

    def by_part(self) -> dict[str, float]:
        """Gradient norm of each part; a group's that is below 0 stands for one that is not finite.

        The first call of a step waits for the device.
        """
        if not self._found:
            squares = dict.fromkeys(self.parts, 0.0)
            for part, norm in zip(self.parts, torch.stack(self._taken).tolist(), strict=True):
                squares[part] += norm**2 if norm >= 0 else math.inf
            self._found = {part: math.sqrt(square) for part, square in squares.items()}
        return self._found


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that asks `refuses`, if set, before it changes anything, and then scales gradients by `factors`."""

    refuses: Callable[[], bool] | None = None
    factors: Mapping[str, float] = {}
    """What gradients are multiplied by, by part; parts that are not named are left as they are."""
    overflow = False
    """DeepSpeed reads this at stage 0: the last step was not applied."""

    def step(self, closure: Any = None) -> Any:
        """As AdamW's, or nothing at all."""
        if self.refuses is not None and self.refuses():
            return None
        for group in self.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients and group["part"] in self.factors:
                torch._foreach_mul_(gradients, self.factors[group["part"]])  # pyright: ignore[reportPrivateImportUsage]
        return super().step(closure)


def make_optimizer(module: nn.Module, cfg: OptimConfig) -> GuardedAdamW:
    """AdamW over `parameter_groups`; learning rate and weight decay are set before each step by `set_rates`.

    Fused: one pass over the parameters instead of about ten. What it makes of a number may hang on the number's place
    in its tensor by the last bit, and on nothing else, so that a run that resumes on as many ranks goes on bit by bit.
    """
    groups = parameter_groups(module, cfg)
    return GuardedAdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, weight_decay=0.0, fused=True)


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
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)  # where a fused AdamW keeps it
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor.data), torch.zeros_like(tensor.data)
    return state


class Guard:
    """Decides, equally on all ranks, whether a step is taken.

    Losses are noted on the device; `agree` is the one collective and the one synchronisation, always made before any
    rank can branch; `verdict` is local after it.
    """

    def __init__(self, *, max_norm: float, device: torch.device, world: int) -> None:
        self.max_norm, self.device, self.world = max_norm, device, world
        self.stop = False
        self.norms: dict[str, float] = {}
        """Gradient norm of each part, as the last `agree` heard of it."""
        self._loss: str | None = None
        self._seen = torch.zeros(2, device=device)

    def note(self, loss: Float[Tensor, ""]) -> None:
        """Remember a loss that is NaN or infinite, until the next `agree`."""
        loss = loss.detach()
        self._seen = torch.maximum(self._seen, torch.stack((loss.isnan(), loss.isinf())).float())

    def agree(self, *, norms: Mapping[str, Tensor], stop: bool) -> None:
        """Share what any rank saw: bad losses, the largest gradient norm of each part, the wish to stop.

        Norms that are not known yet are left out, on all ranks alike.
        """
        wish = torch.full((), float(stop), device=self.device)
        known = (torch.nan_to_num(norm.float(), nan=math.inf, posinf=math.inf) for norm in norms.values())
        shared = torch.stack((*self._seen, wish, *known))
        if self.world > 1:
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        is_nan, is_inf, any_stop, *found = shared.tolist()
        self.norms = dict(zip(norms, found, strict=True))
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

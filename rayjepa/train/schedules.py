"""Learning rate, weight decay, momentum and clipping as functions of the step, and what does not fit the run.

A run here is one phase, and a step is counted from 0 within it. All schedules are as long as optim.horizon times the
phase, so that above 1 they are cut off before their end values.
"""

import math

from rayjepa.config import RunConfig


def learning_rate(run: RunConfig, step: int) -> float:
    """Learning rate of `step`: linear from optim.start_lr to optim.lr, then by optim.shape to optim.final_lr.

    Schedules move before the update: the first step is one warm-up step above start_lr, step warmup_steps - 1 has lr,
    and the last step of a horizon of 1 has final_lr.
    Source:  V-JEPA's reference implementation, src/utils/schedulers.py.
    """
    optim, index = run.optim, step + 1
    if index < optim.warmup_steps:
        return optim.start_lr + (optim.lr - optim.start_lr) * index / optim.warmup_steps
    done = _share(float(index - optim.warmup_steps), _length(run) - optim.warmup_steps)
    left = 1 - done if optim.shape == "linear" else _half_cosine(done)
    return optim.final_lr + (optim.lr - optim.final_lr) * left


def weight_decay(run: RunConfig, step: int) -> float:
    """Weight decay of matrices at `step`: a half cosine from optim.weight_decay to optim.final_weight_decay."""
    first, final = run.optim.weight_decay, run.optim.final_weight_decay
    if final is None:
        return first
    return final + (first - final) * _half_cosine(_share(step + 1.0, _length(run)))


def momentum(run: RunConfig, step: int) -> float:
    """Share of the target that `step` keeps: linear from ema.momentum to ema.final_momentum.

    Unlike the others it counts from 0: the first step has ema.momentum, and the end value is that of the step after
    the horizon.
    """
    first, final = run.ema.momentum, run.ema.final_momentum
    if final is None:
        return first
    return first + (final - first) * _share(float(step), _length(run))


def clip_norm(run: RunConfig, step: int) -> float | None:
    """Norm to which gradients are scaled down at `step`; none before optim.clip_from_step."""
    return run.optim.clip if step >= run.optim.clip_from_step else None


def warnings_for(run: RunConfig) -> list[str]:
    """Sentences on schedules whose horizon does not fit the run; empty if all fit."""
    found: list[str] = []
    steps, warmup, keep = run.train.steps, run.optim.warmup_steps, run.ema.momentum
    if warmup >= steps:
        found.append(
            f"optim.warmup_steps={warmup} is not shorter than train.steps={steps}: the run ends within the warm-up, "
            f"at a learning rate of {learning_rate(run, steps - 1):.4g} and not optim.final_lr={run.optim.final_lr}"
        )
    elif cut := _cut_off(run):
        found.append(
            f"optim.horizon={run.optim.horizon} cuts the schedules off before their ends: the last step has "
            f"{', '.join(cut)}; optim.horizon=1 reaches them"
        )
    memory = math.inf if keep == 1 else 1 / (1 - keep)
    if memory > steps / 5:
        found.append(
            f"ema.momentum={keep} averages over {memory:.0f} steps, more than a fifth of train.steps={steps}: "
            f"the target stays near its start; a fifth would be ema.momentum={max(0.0, 1 - 5 / steps):.4g}"
        )
    return found


def _cut_off(run: RunConfig) -> list[str]:
    """Each schedule that optim.horizon keeps from its end value: what the last step has instead."""
    if run.optim.horizon == 1:
        return []
    last, optim = run.train.steps - 1, run.optim
    ends = (
        ("optim.final_lr", "a learning rate of", learning_rate(run, last), optim.final_lr),
        ("optim.final_weight_decay", "a weight decay of", weight_decay(run, last), optim.final_weight_decay),
        ("ema.final_momentum", "a momentum of", momentum(run, last), run.ema.final_momentum),
    )
    return [f"{what} {got:.4g} and not {key}={end}" for key, what, got, end in ends if end is not None and got != end]


def _length(run: RunConfig) -> float:
    """Steps of the schedules."""
    return run.optim.horizon * run.train.steps


def _half_cosine(done: float) -> float:
    """What is left of a schedule after a share of it: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _share(done: float, whole: float) -> float:
    """Quotient within [0, 1]; 0 where there is nothing to do."""
    return min(max(done / whole, 0.0), 1.0) if whole > 0 else 0.0

"""Learning rate, momentum and weight decay as functions of the step, and what does not fit the run."""

import math

from rayjepa.config import RunConfig


def learning_rate(run: RunConfig, step: int) -> float:
    """Learning rate of `step`: linear from optim.start_lr to optim.lr, then a half cosine to optim.final_lr.

    The first step has start_lr, step optim.warmup_steps has lr, the last step has final_lr.
    """
    optim, last = run.optim, run.train.steps - 1
    if step < optim.warmup_steps:
        return optim.start_lr + (optim.lr - optim.start_lr) * step / optim.warmup_steps
    done = _share(step - optim.warmup_steps, last - optim.warmup_steps)
    return optim.final_lr + (optim.lr - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def momentum(run: RunConfig, step: int) -> float:
    """Share of the target that `step` keeps: linear from ema.momentum to ema.final_momentum at the last step."""
    first, final = run.ema.momentum, run.ema.final_momentum
    if final is None:
        return first
    return first + (final - first) * _share(step, run.train.steps - 1)


def weight_decay(run: RunConfig, step: int) -> float:
    """Weight decay of matrices at `step`: constant."""
    return run.optim.weight_decay


def warnings_for(run: RunConfig) -> list[str]:
    """Sentences on schedules whose horizon does not fit the run; empty if all fit."""
    found: list[str] = []
    steps, warmup, keep = run.train.steps, run.optim.warmup_steps, run.ema.momentum
    if warmup >= steps:
        found.append(
            f"optim.warmup_steps={warmup} is not shorter than train.steps={steps}: "
            f"optim.lr={run.optim.lr} is never reached"
        )
    horizon = math.inf if keep == 1 else 1 / (1 - keep)
    if horizon > steps / 5:
        found.append(
            f"ema.momentum={keep} averages over {horizon:.0f} steps, more than a fifth of train.steps={steps}: "
            f"the target stays near its start; a fifth would be ema.momentum={max(0.0, 1 - 5 / steps):.4g}"
        )
    return found


def _share(done: int, whole: int) -> float:
    """Quotient within [0, 1]; all of it where there is nothing to do."""
    return min(max(done / whole, 0.0), 1.0) if whole > 0 else 1.0

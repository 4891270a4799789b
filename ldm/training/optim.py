"""Learning-rate schedules: a factor on the optimizer's `lr` for each optimizer step.

All rise linearly over `warmup` steps: step 0 has 1/(warmup + 1) of the rate.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_constant(optimizer: Optimizer, warmup: int = 0) -> LambdaLR:
    """Stays at the optimizer's rate after the warmup."""
    return LambdaLR(optimizer, _warmed(warmup, lambda step: 1.0))


def warmup_cosine(
    optimizer: Optimizer, steps: int, warmup: int = 0, final: float = 0.0
) -> LambdaLR:
    """Half a cosine from 1 after the warmup to `final` at step `steps`, and `final` from there."""
    _check(steps, warmup)

    def factor(step: int) -> float:
        done = min(1.0, (step - warmup) / (steps - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, _warmed(warmup, factor))


def warmup_linear(
    optimizer: Optimizer, steps: int, warmup: int = 0, final: float = 0.0
) -> LambdaLR:
    """A straight line from 1 after the warmup to `final` at step `steps`, then `final`."""
    _check(steps, warmup)

    def factor(step: int) -> float:
        done = min(1.0, (step - warmup) / (steps - warmup))
        return final + (1 - final) * (1 - done)

    return LambdaLR(optimizer, _warmed(warmup, factor))


def _warmed(warmup: int, after: Callable[[int], float]) -> Callable[[int], float]:
    def factor(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else after(step)

    return factor


def _check(steps: int, warmup: int) -> None:
    if not 0 <= warmup < steps:
        raise ValueError(
            f"module.lr_schedule.warmup={warmup} does not end before module.lr_schedule.steps="
            f"{steps}: set a shorter warmup or more steps (trainer.max_steps)"
        )

"""Learning-rate schedules as mmengine configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def warmup_multistep(
    *,
    iterations: int,
    warmup_iterations: int = 0,
    warmup_factor: float = 1 / 3,
    drops: Sequence[float] = (),
    gamma: float = 0.1,
) -> list[dict[str, Any]]:
    """Return ``param_scheduler`` of a linear warm-up followed by drops.

    The rate at iteration ``i`` (counted from 0) is ``lr * w(i + 1) * gamma ** |{d <= i + 1}|`` with
    ``w(t) = f + (1 - f) t / W`` for ``t < W`` and 1 after, as in maskrcnn-benchmark (``solver/lr_scheduler.py``), which
    steps its schedule before each iteration.

    Args:
        iterations: Length of the training.
        warmup_iterations: Length ``W`` of the warm-up, also when it is longer than the training.
        warmup_factor: Factor ``f`` the warm-up rises from.
        drops: Where the rate is multiplied by ``gamma``: fractions of ``iterations`` below 1, or iterations.
        gamma: Factor of each drop.

    Returns:
        One or two scheduler configs, by iteration.
    """
    steps = [round(drop * iterations) if drop < 1 else round(drop) for drop in drops]
    schedulers: list[dict[str, Any]] = [
        # mmengine applies milestone m at iteration m, the source at m - 1.
        dict(type="MultiStepLR", by_epoch=False, milestones=[max(step - 1, 0) for step in steps], gamma=gamma)
    ]
    if warmup_iterations > 1:
        start = warmup_factor + (1 - warmup_factor) / warmup_iterations
        schedulers.insert(0, dict(type="LinearLR", by_epoch=False, start_factor=start, begin=0, end=warmup_iterations))
    return schedulers

"""Schedules of an experiment as mmengine configs: optimiser, learning rate, length, arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltpipe.config.schedules import Schedule


def optimization(schedule: Schedule, iterations: int) -> dict[str, Any]:
    """Return ``optim_wrapper``, ``param_scheduler`` and ``train_cfg`` of a schedule.

    mmengine counts forward passes where we count optimiser steps: with ``accumulate`` there are more of them.

    Args:
        schedule: ``Schedule`` of the experiment.
        iterations: Optimiser steps of the run.
    """
    kinds = {
        "sgd": dict(type="SGD", lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay),
        "adamw": dict(type="AdamW", lr=schedule.lr, weight_decay=schedule.weight_decay),
    }
    wrapper: dict[str, Any] = dict(
        type="OptimWrapper",
        optimizer=kinds[schedule.optimizer],
        paramwise_cfg=_paramwise(schedule),
        clip_grad=dict(max_norm=schedule.clip_norm) if schedule.clip_norm else None,
    )
    if schedule.precision != "fp32":
        wrapper.update(type="ltpipe.HalfPrecision", dtype={"bf16": "bfloat16", "fp16": "float16"}[schedule.precision])
    if schedule.accumulate > 1:
        wrapper["accumulative_counts"] = schedule.accumulate
    return {
        "optim_wrapper": wrapper,
        "param_scheduler": learning_rates(schedule, iterations),
        "train_cfg": dict(type="IterBasedTrainLoop", max_iters=iterations * schedule.accumulate),
    }


def _paramwise(schedule: Schedule) -> dict[str, Any] | None:
    """Return mmengine's ``paramwise_cfg``; None if all parameters are alike."""
    biases = dict(bias_lr_mult=schedule.bias_lr_mult, bias_decay_mult=schedule.bias_decay_mult)
    found: dict[str, Any] = biases if set(biases.values()) != {1.0} else {}
    if schedule.norm_decay_mult != 1:
        found["norm_decay_mult"] = schedule.norm_decay_mult
    parts: dict[str, dict[str, float]] = {}
    for option in ("lr_mult", "decay_mult"):
        for part, value in getattr(schedule, option).items():
            parts.setdefault(part, {})[option] = value
    if parts:
        found["custom_keys"] = parts
    return found or None


def learning_rates(schedule: Schedule, iterations: int) -> list[dict[str, Any]]:
    """Return ``param_scheduler``: a linear warm-up, then drops or a steady decay.

    Args:
        schedule: ``Schedule`` of the experiment.
        iterations: Optimiser steps of the run.
    """
    warmup = warmup_multistep(
        iterations=iterations,
        warmup_iterations=schedule.warmup_iterations,
        warmup_factor=schedule.warmup_factor,
        drops=schedule.drops if schedule.decay == "steps" else (),
        gamma=schedule.gamma,
        passes=schedule.accumulate,
    )
    if schedule.decay == "steps":
        return warmup
    begin, end = (count * schedule.accumulate for count in (schedule.warmup_iterations, iterations))
    decay: dict[str, Any] = dict(by_epoch=False, begin=min(begin, end - 1), end=end)
    if schedule.decay == "cosine":
        decay.update(type="CosineAnnealingLR", eta_min_ratio=schedule.final_lr)
    else:
        decay.update(type="PolyLR", power=schedule.power, eta_min=schedule.final_lr * schedule.lr)
    return [*warmup[:-1], decay]


def warmup_multistep(
    *,
    iterations: int,
    warmup_iterations: int = 0,
    warmup_factor: float = 1 / 3,
    drops: Sequence[float] = (),
    gamma: float = 0.1,
    passes: int = 1,
) -> list[dict[str, Any]]:
    """Return ``param_scheduler`` of a linear warm-up followed by drops.

    The rate of optimiser step ``i`` (counted from 0) is ``lr * w(i + 1) * gamma ** |{d <= i + 1}|`` with
    ``w(t) = f + (1 - f) t / W`` for ``t < W`` and 1 after, as in maskrcnn-benchmark (``solver/lr_scheduler.py``), which
    steps its schedule before each iteration.

    Args:
        iterations: Optimiser steps of the training.
        warmup_iterations: Length ``W`` of the warm-up, also when it is longer than the training.
        warmup_factor: Factor ``f`` the warm-up rises from.
        drops: Where the rate is multiplied by ``gamma``: fractions of ``iterations`` below 1, or iterations.
        gamma: Factor of each drop.
        passes: Iterations of mmengine per optimiser step, which is the last of them.

    Returns:
        One or two scheduler configs, by iteration of mmengine.
    """
    steps = [round(drop * iterations) if drop < 1 else round(drop) for drop in drops]
    # mmengine applies milestone m at iteration m, the source at m - 1.
    milestones = [max(step - 1, 0) * passes for step in steps]
    schedulers: list[dict[str, Any]] = [dict(type="MultiStepLR", by_epoch=False, milestones=milestones, gamma=gamma)]
    if warmup_iterations > 1:
        length = warmup_iterations * passes
        start = warmup_factor + (1 - warmup_factor) / length
        schedulers.insert(0, dict(type="LinearLR", by_epoch=False, start_factor=start, begin=0, end=length))
    return schedulers

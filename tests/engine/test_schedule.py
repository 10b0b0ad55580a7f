"""Learning-rate schedule: mmengine's schedulers built from our dicts follow the formula."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR, PolyLR

from ltpipe.config.schedules import Schedule
from ltpipe.engine.schedule import learning_rates, optimization, warmup_multistep


def rates(configs: list[dict], iterations: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    kinds = {kind.__name__: kind for kind in (LinearLR, MultiStepLR, CosineAnnealingLR, PolyLR)}
    schedulers = [kinds[config.pop("type")](optimizer, **config) for config in configs]
    seen = []
    for _ in range(iterations):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return seen


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 50])
@pytest.mark.parametrize("drops", [(), (0.6, 0.8), (3, 20), (1,), (0.01,)])
@pytest.mark.parametrize("factor", [1 / 3, 0.001, 1.0])
def test_rates_follow_the_formula(warmup: int, drops: tuple[float, ...], factor: float) -> None:
    total, lr = 30, 0.02
    configs = warmup_multistep(iterations=total, warmup_iterations=warmup, warmup_factor=factor, drops=drops, gamma=0.2)
    steps = [round(drop * total) if drop < 1 else drop for drop in drops]
    expected = []
    for i in range(total):
        t = i + 1
        rising = factor + (1 - factor) * t / warmup if t < warmup else 1.0
        expected.append(lr * rising * 0.2 ** sum(t >= step for step in steps))
    assert rates(configs, total, lr) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decay", ["steps", "cosine", "polynomial"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_of_several_passes_has_the_rate_of_one_of_one(decay: str, accumulate: int) -> None:
    options = {} if decay == "steps" else {"decay": decay, "final_lr": 0.1}
    schedule = Schedule(iterations=30, batch_size=6, warmup_iterations=5, lr=0.02, accumulate=accumulate, **options)
    found = rates(learning_rates(schedule, 30), 30 * accumulate, 0.02)[accumulate - 1 :: accumulate]
    rising = [1 / 3 + 2 / 3 * min(i + 1, 5) / 5 for i in range(5)]
    if decay == "steps":
        falling = [0.1 ** sum(i + 1 >= drop for drop in (18, 24)) for i in range(5, 30)]
    else:
        # Counted at the last pass of a step; mmengine's polynomial has come to its end in the last one.
        passes = [(i - 5) * accumulate + accumulate - 1 for i in range(5, 30)]
        done = [t / (25 * accumulate - (decay == "polynomial")) for t in passes]
        shares = [(1 + math.cos(math.pi * t)) / 2 if decay == "cosine" else 1 - t for t in done]
        falling = [0.1 + 0.9 * share for share in shares]
    assert found == pytest.approx([0.02 * rate for rate in rising[:4] + [1.0] + falling], rel=1e-6)


def test_parts_with_rates_of_their_own() -> None:
    schedule = Schedule(lr_mult={"backbone": 0.1, "backbone.layer1": 0}, decay_mult={"backbone": 2}, norm_decay_mult=0)
    assert optimization(schedule, 5)["optim_wrapper"]["paramwise_cfg"] == {
        "norm_decay_mult": 0,
        "custom_keys": {"backbone": {"lr_mult": 0.1, "decay_mult": 2}, "backbone.layer1": {"lr_mult": 0}},
    }

"""Learning-rate schedule: mmengine's schedulers built from our dicts follow the formula."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import LinearLR, MultiStepLR

from ltpipe.engine.schedule import warmup_multistep


def rates(configs: list[dict], iterations: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    kinds = {"LinearLR": LinearLR, "MultiStepLR": MultiStepLR}
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

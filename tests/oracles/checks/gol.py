"""GOL and its Gumbel cross entropy against the published forward passes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ltpipe.methods.eql.drop import GOLLoss
from ltpipe.methods.eql.gumbel import GumbelLoss
from tests.helpers.loss_cases import check_droploss, check_steps, close, load

METHOD = "gol"
CANCELS = 2e-3
"""The published form loses digits near 10."""


def check_gumbel(path: Path) -> None:
    """Losses, gradients and test scores, with label weights and average factor where they are given."""
    data = load(path)
    loss = GumbelLoss(data["num_classes"], loss_weight=data["loss_weight"])
    weights, factors = data.get("in_label_weights"), data.get("in_avg_factor")
    relative = CANCELS if path.name.startswith(("gumbel_extreme", "gumbel_capped")) else 1e-4

    def step(t: int, logits: Tensor, labels: Tensor) -> Tensor:
        weight, factor = (None if values is None else values[t] for values in (weights, factors))
        return loss(logits, labels, weight, avg_factor=None if factor is None else float(factor))

    check_steps(data, step, relative)
    close(loss.get_activation(data["in_logits"][-1]), data["out_activation_last"], relative)


CHECKS = {"gumbel_": check_gumbel, "droploss_gumbel_": partial(check_droploss, kind=GOLLoss)}

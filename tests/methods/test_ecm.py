"""ECM against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from ltpipe.errors import UserError
from ltpipe.methods.ecm.loss import ECMLoss, margins_and_weights

INSTANCES, IMAGES = [50, 9, 0], [40, 8, 0]
K = 3
LABELS = torch.tensor([0, 2, K, 1, K])


def expected(z: torch.Tensor, counts: list[float]) -> float:
    total, value = sum(counts), 0.0
    for row, label in zip(z.tolist(), LABELS.tolist(), strict=True):
        for channel, (logit, n) in enumerate(zip(row, counts, strict=True)):
            rest = total - n
            margin = math.log(1 + (n / rest) ** 0.25) - math.log(1 + (rest / n) ** 0.25)
            score = 1 / (1 + math.exp(-2 * logit - margin))
            weight = rest / n * math.log(1 + n / rest)
            value -= weight * math.log(score if channel == label else 1 - score)
    return value / len(LABELS)


@pytest.mark.parametrize(("statistic", "counts"), [("instance", [50.0, 9.0, 1.0]), ("image", [40.0, 8.0, 1.0])])
def test_value(statistic: str, counts: list[float]) -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K + 1)
    loss = ECMLoss(K, IMAGES, INSTANCES, statistic, background_ratio=2.0, loss_weight=3.0)
    value = 3 * expected(z, [*counts, 2 * sum(counts)])
    assert loss(z, LABELS).item() == pytest.approx(value, rel=1e-5)
    assert loss(z, LABELS, torch.tensor([0.0, 1, 0, 2, 1]), avg_factor=3.0).item() == pytest.approx(value, rel=1e-5)


def test_scores_have_neither_margin_nor_factor() -> None:
    z = torch.randn(4, K + 1)
    p = z.sigmoid()
    torch.testing.assert_close(
        ECMLoss(K, IMAGES, INSTANCES).get_activation(z), torch.cat([p[:, :-1] * (1 - p[:, -1:]), p[:, -1:]], dim=1)
    )


def test_the_rarest_class_of_a_huge_data_set_is_still_trained() -> None:
    """In float32 its weight would be 0; the limit is 1."""
    _, weight = margins_and_weights(torch.tensor([1, 10**9]), 6.3313)
    assert weight[0].item() == pytest.approx(1.0, abs=1e-8)


def test_no_background() -> None:
    with pytest.raises(UserError, match="background"):
        ECMLoss(K, IMAGES, INSTANCES, background_ratio=0.0)

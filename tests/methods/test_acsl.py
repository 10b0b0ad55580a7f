"""ACSL against its definition, as loss and on stored features."""

from __future__ import annotations

import math

import pytest
import torch

from ltpipe.errors import UserError
from ltpipe.methods.acsl.functions import class_groups
from ltpipe.methods.acsl.loss import ACSL, ACSLLoss
from tests.helpers.contract_cases import box_head

K = 3
IMAGES = [500, 50, 5]
BACKGROUND = 230
LABELS = torch.tensor([0, 1, 2, 2, *[K] * BACKGROUND])


def test_value_and_the_background_that_is_drawn() -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K + 1) * 2
    drawn = ACSLLoss(K, IMAGES).background_rows(LABELS)
    assert drawn.sum(dim=1).tolist() == [2, 23] and not drawn[:, :4].any()
    expected = 0.0
    for n, label in enumerate(LABELS.tolist()):
        for c in range(K + 1):
            score = 1 / (1 + math.exp(-z[n, c]))
            if label < K:
                counts = c == label or score >= 0.7
            else:
                counts = c in (0, K) or bool(drawn[2 - c, n])
            expected -= math.log(score if c == label else 1 - score) if counts else 0.0
    found = ACSLLoss(K, IMAGES)(z, LABELS, torch.full((len(LABELS),), 9.0), avg_factor=1.0)
    assert found.item() == pytest.approx(expected / len(LABELS), rel=1e-5)


@pytest.mark.parametrize(("count", "rare", "common"), [(0, 0, 0), (9, 0, 0), (10, 0, 1), (99, 0, 9), (700, 7, 70)])
def test_small_batches(count: int, rare: int, common: int) -> None:
    drawn = ACSLLoss(K, IMAGES).background_rows(torch.tensor([K] * count, dtype=torch.int64))
    assert drawn.sum(dim=1).tolist() == [rare, common]


def test_groups() -> None:
    assert class_groups(IMAGES, None, None).tolist() == [2, 1, 0]
    assert class_groups(IMAGES, ["r", "f", "c"], None).tolist() == [0, 2, 1], "the data set's own come first"
    assert class_groups(IMAGES, ["r", "f", "c"], [50, 600]).tolist() == [1, 0, 0], "unless limits are given"
    with pytest.raises(UserError, match="limits"):
        class_groups(IMAGES, None, [100, 10])


def test_scores_are_plain() -> None:
    z = torch.randn(4, K + 1)
    torch.testing.assert_close(ACSLLoss(K, IMAGES).get_activation(z), z.sigmoid())


def test_new_classifier() -> None:
    calibrator = ACSL(6, [900, 300, 60, 12, 3, 0])
    calibrator.initialise(box_head())
    torch.testing.assert_close(calibrator.head.fc_cls.bias, torch.full((7,), -math.log(99)))
    assert 0.005 < float(calibrator.head.fc_cls.weight.detach().std()) < 0.02

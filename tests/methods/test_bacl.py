"""BACL's loss against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ltpipe.errors import UserError
from ltpipe.methods.bacl.loss import BACLLoss
from ltpipe.methods.class_rows import reorder_classes

K = 4
LABELS = torch.tensor([0, 2, K, 2, 3])


def expected(z: torch.Tensor, confusion: torch.Tensor, plain: bool) -> float:
    value = 0.0
    for row, label in zip(z.tolist(), LABELS.tolist(), strict=True):
        p = [1 / (1 + math.exp(-logit)) for logit in row]
        scores = [s * (1 - p[K]) for s in p[:K]]
        for c in range(K + 1):
            logit, counts = row[c], True
            if label < K and c < K:
                given, taken = max(float(confusion[label, c]), 1e-3), max(float(confusion[c, label]), 1e-3)
                logit += 0.85 * math.log(given / taken)
                counts = plain or scores[c] >= scores[label] or scores[c] >= 0.7
            score = 1 / (1 + math.exp(-logit))
            value -= math.log(score if c == label else 1 - score) * counts
    return value / len(LABELS)


def test_value_and_confusion() -> None:
    torch.manual_seed(0)
    loss, sums, counts = BACLLoss(K, plain_steps=2), torch.zeros(K, K), torch.zeros(K)
    for step in range(4):
        z = torch.randn(len(LABELS), K + 1) * 2
        confusion = sums / counts.clamp(min=1)[:, None]
        assert loss(z, LABELS).item() == pytest.approx(expected(z, confusion, step < 2), rel=1e-4)
        for row, label in zip(z, LABELS.tolist(), strict=True):
            if label < K:
                sums[label] += row[:K].softmax(dim=0)
                counts[label] += 1
        torch.testing.assert_close(loss.cm_numerator, sums)
        assert loss.num_gt.equal(counts)
    before = loss.cm_numerator.clone()
    loss.eval()(torch.randn(len(LABELS), K + 1), LABELS)
    assert loss.cm_numerator.equal(before) and int(loss.steps) == 4


def test_classes_in_another_order() -> None:
    loss = BACLLoss(K)
    loss.cm_numerator.copy_(torch.arange(K * K).reshape(K, K))
    loss.num_gt.copy_(torch.arange(K))
    head = nn.Module()
    head.loss_cls = loss
    order = [2, 0, 3, 1]
    found = reorder_classes(head.state_dict(), {"": head}, K, order)
    assert found["loss_cls.cm_numerator"].equal(loss.cm_numerator[order][:, order])
    assert found["loss_cls.num_gt"].tolist() == order
    fewer = reorder_classes(head.state_dict(), {"": head}, K, [3, 0])
    assert fewer["loss_cls.cm_numerator"].tolist() == [[15, 12], [3, 0]]


def test_options() -> None:
    with pytest.raises(UserError, match="bacl"):
        BACLLoss(K, plain_steps=-1)

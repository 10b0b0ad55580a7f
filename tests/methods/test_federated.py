"""The federated loss against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltpipe.errors import UserError
from ltpipe.methods.federated.loss import FederatedLoss

K = 6
IMAGES = [400, 100, 25, 4, 1, 0]
LABELS = torch.tensor([2, K, 5, 2])


def test_value_is_over_labels_and_drawn_classes() -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K + 1, requires_grad=True)
    loss = FederatedLoss(K, IMAGES, num_sampled=4, loss_weight=2.0)
    chosen = FederatedLoss(K, IMAGES, num_sampled=4).classes(LABELS)
    assert int(chosen.sum()) == 4 and chosen[LABELS].all(), "labels, background among them, and one more"
    target = F.one_hot(LABELS, K + 1).float()
    terms = F.binary_cross_entropy_with_logits(z, target, reduction="none")[:, :K][:, chosen[:K]]
    value = loss(z, LABELS)
    torch.testing.assert_close(value, 2 * terms.sum() / len(LABELS))
    value.backward()
    assert not z.grad[:, K].any() and not z.grad[:, ~chosen].any()


@pytest.mark.parametrize(
    ("labels", "size", "expected"),
    [
        ([2, K, 5], 50, [0, 1, 2, 3, 4, 5, K]),  # more than there are
        ([2], 50, [0, 1, 2, 3, 4]),  # a class without images is never drawn, the background neither
        ([0, 1, 2, 5, K], 3, [0, 1, 2, 5, K]),  # labels are never left out
        ([], 50, [0, 1, 2, 3, 4]),
    ],
)
def test_which_classes(labels: list[int], size: int, expected: list[int]) -> None:
    loss = FederatedLoss(K, IMAGES, num_sampled=size)
    found = loss.classes(torch.tensor(labels, dtype=torch.int64))
    assert found.nonzero()[:, 0].tolist() == expected


def test_probability_is_the_power_of_the_counts() -> None:
    loss = FederatedLoss(K, IMAGES, num_sampled=1, power=0.5)
    draws = torch.stack([loss.classes(torch.empty(0, dtype=torch.int64)) for _ in range(2000)]).float().mean(dim=0)
    expected = torch.tensor([20, 10, 5, 2, 1, 0, 0]) / 38
    torch.testing.assert_close(draws, expected, rtol=0, atol=0.04)


def test_no_classes() -> None:
    with pytest.raises(UserError, match="classes per step"):
        FederatedLoss(K, IMAGES, num_sampled=0)

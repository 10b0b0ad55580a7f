"""EQL against its definition, and the baseline beside it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltpipe.errors import UserError
from ltpipe.methods.eql.functions import tail_classes
from ltpipe.methods.eql.loss import EQLLoss
from ltpipe.methods.softmax.baseline import LinearClassifier, SoftmaxLoss

K = 5
IMAGES, INSTANCES = [900, 300, 20, 2, 0], [9000, 400, 500, 2, 0]
LABELS = torch.tensor([0, 3, K, 2, K, 1])


def loss(**options: object) -> EQLLoss:
    """Return the loss with classes 3 and 4 in the tail."""
    return EQLLoss(K, IMAGES, INSTANCES, num_annotated_images=1000, **{"threshold": 0.01, **options})


def test_value_is_the_weighted_sum_over_classes() -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K)
    expected = 0.0
    for n, label in enumerate(LABELS):
        for j in range(K):
            y = float(label == j)
            weight = 1 - float(label < K) * float(j in (3, 4)) * (1 - y)
            expected += weight * F.binary_cross_entropy_with_logits(z[n, j], torch.tensor(y)).item()
    assert loss(loss_weight=2.0)(z, LABELS).item() == pytest.approx(2 * expected / len(LABELS), rel=1e-5)


def test_tail_negatives_get_gradient_from_background_only() -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K, requires_grad=True)
    loss()(z, LABELS).backward()
    assert not z.grad[LABELS == 0][:, 3:].any()
    assert z.grad[LABELS == 3][:, 3].all() and not z.grad[LABELS == 3][:, 4].any()
    assert z.grad[LABELS == K].all()


def test_without_tail_it_is_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K)
    target = F.one_hot(LABELS, K + 1)[:, :K].float()
    plain = F.binary_cross_entropy_with_logits(z, target, reduction="sum") / len(LABELS)
    torch.testing.assert_close(loss(threshold=0.0)(z, LABELS), plain)


def test_statistics() -> None:
    assert loss().tail.tolist() == [False, False, False, True, True]
    assert loss(threshold=0.02).tail.tolist() == [False, False, False, True, True]
    by_instances = loss(statistic="instance_count", threshold=450.0)
    assert by_instances.tail.tolist() == [False, True, False, True, True]
    # The comparison happens in float32: the next double below the threshold is not below it.
    assert not tail_classes(torch.tensor([0.0011 - 1e-17], dtype=torch.float64), 0.0011).item()


@pytest.mark.parametrize("images", [None, 0, 899])
def test_missing_number_of_images(images: int | None) -> None:
    with pytest.raises(UserError, match="annotated training images"):
        EQLLoss(K, IMAGES, INSTANCES, num_annotated_images=images)
    EQLLoss(K, IMAGES, INSTANCES, num_annotated_images=None, statistic="instance_count")


def test_label_weights_and_average_factor() -> None:
    torch.manual_seed(0)
    z, weight = torch.randn(len(LABELS), K), torch.tensor([1.0, 0, 1, 0, 0, 2])
    rows = loss()(z, LABELS, reduction_override="none")
    torch.testing.assert_close(loss()(z, LABELS, weight, avg_factor=3.0), (rows * weight).sum() / 3)
    torch.testing.assert_close(loss()(z, LABELS, torch.ones(6), avg_factor=6.0), loss()(z, LABELS))


def test_scores_have_an_empty_background_column() -> None:
    z = torch.randn(4, K)
    scores = loss().get_activation(z)
    assert scores.shape == (4, K + 1) and not scores[:, -1].any()
    torch.testing.assert_close(scores[:, :-1], z.sigmoid())
    assert loss().get_cls_channels(K) == K
    best = F.one_hot(torch.tensor([0, 3, 0, 1]), K).float()
    assert loss().get_accuracy(best, torch.tensor([0, 2, K, 1]))["acc_classes"].item() == pytest.approx(200 / 3)


def test_baseline_is_torch_and_mmdet() -> None:
    torch.manual_seed(0)
    layer, x = LinearClassifier(3, K + 1), torch.randn(len(LABELS), 3)
    z = layer(x)
    torch.testing.assert_close(z, x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(SoftmaxLoss(loss_weight=0.5)(z, LABELS), 0.5 * F.cross_entropy(z, LABELS))

"""EQLv2 against its definition, mmdet's loss values, and its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.models.losses import EQLV2Loss as StockLoss
from torch import Tensor

from ltpipe.methods.eqlv2.loss import EQLv2Loss, eqlv2_weights
from tests.helpers.pairs import run_pair

K = 5
LABELS = torch.tensor([0, 0, 1, K, 2, K, 0, 1])


def logits(seed: int, n: int = len(LABELS)) -> Tensor:
    """Return random logits ``(n, K + 1)``."""
    return torch.randn(n, K + 1, generator=torch.Generator().manual_seed(seed)) * 2


def test_several_steps_against_loops() -> None:
    loss = EQLv2Loss(K, gamma=6.0, mu=0.5, alpha=2.0, loss_weight=0.7)
    pos, neg, ratio = torch.zeros(K), torch.zeros(K), torch.full((K,), 100.0)
    for step in range(4):
        z = logits(step).requires_grad_()
        expected, slopes = 0.0, torch.zeros_like(z)
        add_pos, add_neg = torch.zeros(K), torch.zeros(K)
        for n, label in enumerate(LABELS):
            for j in range(K + 1):
                p, y = z[n, j].sigmoid().item(), float(label == j)
                down = 1.0 if j == K else 1 / (1 + torch.exp(-6 * (ratio[j] - 0.5))).item()
                up = 1 + 2 * (1 - down)
                weight = up * y + down * (1 - y)
                expected -= weight * (torch.tensor(p if y else 1 - p)).log().item()
                slopes[n, j] = weight * (p - y) * 0.7 / len(LABELS)
                if j < K:
                    add_pos[j] += weight * y * (1 - p)
                    add_neg[j] += weight * (1 - y) * p
        value = loss(z, LABELS)
        value.backward()
        assert value.item() == pytest.approx(0.7 * expected / len(LABELS), rel=1e-4)
        torch.testing.assert_close(z.grad, slopes, rtol=1e-4, atol=1e-6)
        pos, neg = pos + add_pos, neg + add_neg
        ratio = pos / (neg + 1e-10)
        for name, state in (("pos_grad", pos), ("neg_grad", neg), ("pos_neg", ratio)):
            torch.testing.assert_close(getattr(loss, name), state, rtol=1e-4, atol=1e-6)


def test_values_are_those_of_mmdet_but_scores_are_not_softmax() -> None:
    ours, stock = EQLv2Loss(K), StockLoss(num_classes=K)
    for step in range(3):
        torch.testing.assert_close(ours(logits(step), LABELS), stock(logits(step), LABELS))
    torch.testing.assert_close(ours.pos_neg, stock.pos_neg)
    assert ours.custom_cls_channels and ours.custom_activation and ours.custom_accuracy
    z = logits(9)
    torch.testing.assert_close(ours.get_activation(z), stock.get_activation(z))
    assert ours.get_cls_channels(K) == K + 1


def test_first_batch_is_unweighted_and_unseen_negatives_fade_after_it() -> None:
    loss = EQLv2Loss(K)
    for weights in eqlv2_weights(loss.pos_neg, loss.gamma, loss.mu, loss.alpha):
        torch.testing.assert_close(weights, torch.ones(K + 1))
    loss(logits(0), LABELS)
    positive, negative = eqlv2_weights(loss.pos_neg, loss.gamma, loss.mu, loss.alpha)
    assert (negative[3:K] < 1e-4).all() and (positive[3:K] > 4.999).all()
    assert positive[-1] == negative[-1] == 1


def test_accumulators_grow_and_background_leaves_positives() -> None:
    loss = EQLv2Loss(K)
    loss(logits(0), LABELS)
    pos, neg = loss.pos_grad.clone(), loss.neg_grad.clone()
    loss(logits(1), torch.full((8,), K))
    assert torch.equal(loss.pos_grad, pos) and (loss.neg_grad > neg).all()
    loss(logits(2), LABELS)
    assert (loss.pos_grad >= pos).all() and (loss.pos_grad[:3] > pos[:3]).all()


def test_scores() -> None:
    z = logits(3)
    p = z.sigmoid()
    scores = EQLv2Loss(K).get_activation(z)
    torch.testing.assert_close(scores[:, :K], p[:, :K] * (1 - p[:, K:]))
    torch.testing.assert_close(scores[:, K], p[:, K])
    torch.testing.assert_close(EQLv2Loss(K, test_with_obj=False).get_activation(z), p)


def test_accuracy() -> None:
    z = torch.full((4, K + 1), -5.0)
    z[0, 2], z[1, 3], z[2, K], z[3, 1] = 5, 5, 5, 5
    found = EQLv2Loss(K).get_accuracy(z, torch.tensor([2, 4, K, K]))
    assert (found["acc_objectness"].item(), found["acc_classes"].item()) == (75.0, 50.0)


def test_label_weights_scale_loss_and_gradients() -> None:
    weighted, plain = EQLv2Loss(K), EQLv2Loss(K)
    weight = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    torch.testing.assert_close(
        weighted(logits(0), LABELS, weight, avg_factor=4.0), plain(logits(0)[:4], LABELS[:4]), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(weighted.pos_neg, plain.pos_neg)


def test_resume_is_exact() -> None:
    whole, first, second = EQLv2Loss(K), EQLv2Loss(K), EQLv2Loss(K)
    for step in range(2):
        whole(logits(step), LABELS), first(logits(step), LABELS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(whole(logits(2), LABELS), second(logits(2), LABELS))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert set(whole.state_dict()) == {"pos_grad", "neg_grad", "pos_neg"}


def test_evaluation_mode_collects_nothing() -> None:
    loss = EQLv2Loss(K)
    held = dict(loss.named_buffers())
    loss(logits(0), LABELS)
    before = {name: value.clone() for name, value in loss.named_buffers()}
    loss.eval()(logits(1), LABELS)
    for name, value in loss.named_buffers():
        assert torch.equal(value, before[name]) and value is held[name]


def test_saturated_half_precision_logits() -> None:
    loss = EQLv2Loss(K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss((logits(0) * 40).bfloat16(), LABELS)
    assert value.isfinite() and value.dtype == loss.pos_grad.dtype == torch.float32


def _rank_state(rank: int) -> dict[str, Tensor]:
    loss = EQLv2Loss(K)
    for step in range(2):
        half = slice(0, 4) if rank == 0 else slice(4, 8)
        loss(logits(step)[half], LABELS[half])
    loss(logits(5)[: 8 * rank], LABELS[: 8 * rank])  # the first process has no RoI at all
    return loss.state_dict()


def test_two_processes_collect_the_joint_batch(tmp_path: Path) -> None:
    first, second = run_pair(tmp_path, _rank_state)
    joint = EQLv2Loss(K)
    for step in (0, 1, 5):
        joint(logits(step), LABELS)
    for name, value in joint.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)

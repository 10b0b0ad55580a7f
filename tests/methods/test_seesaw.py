"""The Seesaw loss against its definition, mmdet's own, and its shared counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.losses import SeesawLoss as StockLoss
from torch import Tensor

from ltpipe.methods.seesaw.loss import SyncedSeesawLoss
from tests.helpers.pairs import run_pair

K = 5
LABELS = torch.tensor([0, 0, 1, K, 2, K, 0, 1])


def logits(seed: int) -> Tensor:
    """Return random logits ``(8, K + 2)``."""
    return torch.randn(len(LABELS), K + 2, generator=torch.Generator().manual_seed(seed)) * 2


def test_several_steps_against_loops() -> None:
    loss, counts = SyncedSeesawLoss(K, p=0.8, q=2.0, eps=0.01, loss_weight=0.7), torch.zeros(K)
    weights = torch.tensor([1.0, 0.5, 1, 1, 2, 0, 1, 1])
    for step in range(3):
        z = logits(step)
        counts += torch.bincount(LABELS, minlength=K + 1)[:K]
        expected = 0.0
        for n, i in enumerate(LABELS):
            if i == K:
                continue
            s, shifted = z[n, :K].softmax(0), z[n, :K].clone()
            for j in range(K):
                if j != i:
                    mitigation = min(1.0, (max(counts[j], 1) / max(counts[i], 1)) ** 0.8)
                    compensation = max(1.0, s[j] / max(s[i], 0.01)) ** 2.0
                    shifted[j] += torch.tensor(float(mitigation * compensation)).log()
            expected -= weights[n] * shifted.log_softmax(0)[i]
        found = loss(z, LABELS, weights, avg_factor=7.0)
        torch.testing.assert_close(found["loss_cls_classes"], 0.7 * expected / 7)
        pairs = F.cross_entropy(z[:, K:], (LABELS == K).long(), reduction="none")
        torch.testing.assert_close(found["loss_cls_objectness"], 0.7 * (pairs * weights).sum() / 7)


@pytest.mark.parametrize("sync", [False, True])
def test_one_process_is_mmdet(sync: bool) -> None:
    ours, stock = SyncedSeesawLoss(K, sync=sync), StockLoss(num_classes=K)
    for step in range(3):
        found, expected = ours(logits(step), LABELS), stock(logits(step), LABELS)
        for name, value in expected.items():
            assert torch.equal(found[name], value)
    assert torch.equal(ours.cum_samples, stock.cum_samples)
    assert torch.equal(ours.get_activation(logits(7)), stock.get_activation(logits(7)))


def test_switched_off_it_is_cross_entropy() -> None:
    found = SyncedSeesawLoss(K, p=0.0, q=0.0)(logits(0), LABELS)["loss_cls_classes"]
    positive = LABELS < K
    torch.testing.assert_close(found, F.cross_entropy(logits(0)[positive, :K], LABELS[positive]))


def test_equal_counts_do_not_mitigate() -> None:
    balanced, off = SyncedSeesawLoss(K, q=0.0), SyncedSeesawLoss(K, p=0.0, q=0.0)
    balanced.cum_samples += 1e7
    found = [loss(logits(0), LABELS)["loss_cls_classes"] for loss in (balanced, off)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


def test_swapping_classes_swaps_gradients() -> None:
    order = torch.tensor([1, 0, 2, 3, 4])
    gradients = []
    for permuted in (False, True):
        loss, z, labels = SyncedSeesawLoss(K), logits(0), LABELS
        loss.cum_samples[:K] = torch.arange(1.0, K + 1)
        if permuted:
            loss.cum_samples[:K] = loss.cum_samples[:K][order]
            z = torch.cat([z[:, :K][:, order], z[:, K:]], dim=1)
            labels = torch.where(labels < K, order[labels.clamp(max=K - 1)], K)
        z.requires_grad_()
        loss(z, labels)["loss_cls_classes"].backward()
        gradients.append(z.grad[:, :K])
    torch.testing.assert_close(gradients[0][:, order], gradients[1])


def test_evaluation_mode_counts_nothing() -> None:
    loss = SyncedSeesawLoss(K)
    loss(logits(0), LABELS)
    before = loss.cum_samples.clone()
    loss.eval()(logits(1), LABELS)
    assert torch.equal(loss.cum_samples, before)


def test_background_only_has_a_graph() -> None:
    z = logits(0).requires_grad_()
    losses = SyncedSeesawLoss(K)(z, torch.full((8,), K))
    assert losses["loss_cls_classes"] == 0
    sum(losses.values()).backward()
    assert not z.grad[:, :K].any() and z.grad[:, K:].all()


def test_background_column_is_its_probability() -> None:
    z = logits(0)
    scores = SyncedSeesawLoss(K).get_activation(z)
    torch.testing.assert_close(scores.sum(1), torch.ones(8))
    torch.testing.assert_close(scores[:, K], z[:, K:].softmax(1)[:, 1])


def _rank_counts(rank: int) -> Tensor:
    loss = SyncedSeesawLoss(K)
    half = slice(0, 3) if rank == 0 else slice(3, 8)
    loss(logits(0)[half], LABELS[half], avg_factor=1.0)
    loss(logits(0)[: 8 * rank], LABELS[: 8 * rank], avg_factor=1.0)  # the first process has no RoI at all
    return loss.cum_samples


def test_two_processes_share_counts(tmp_path: Path) -> None:
    first, second = run_pair(tmp_path, _rank_counts)
    assert torch.equal(first, second)
    assert torch.equal(first, 2.0 * torch.bincount(LABELS, minlength=K + 1))

"""EFL and EQFL: their gradients, and what they collect over the levels of a pyramid and in mmdet's heads."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.efl.loss import EFLLoss, EQFLLoss
from tests.helpers.contract_cases import build_config

K = 4
LABELS = torch.tensor([0, K, 1, 1, K, 2])
QUALITY = torch.tensor([0.3, 0.0, 0.9, 0.0, 0.0, 1.0])
WEIGHT = torch.tensor([1.0, 1, 1, 0, 1, 0.5])


def target(loss: EFLLoss) -> Tensor | tuple[Tensor, Tensor]:
    return (LABELS, QUALITY) if isinstance(loss, EQFLLoss) else LABELS


def test_value() -> None:
    torch.manual_seed(0)
    z, loss = torch.randn(len(LABELS), K), EFLLoss(K, alpha=0.25, loss_weight=2.0)
    loss.pos_neg.copy_(torch.tensor([1.0, 0.5, 0.0, 0.0]))
    gamma, expected = [2.0, 6.0, 10.0, 10.0], 0.0
    for n, label in enumerate(LABELS.tolist()):
        for c in range(K):
            p = 1 / (1 + math.exp(-z[n, c] if label == c else z[n, c]))
            alpha = 0.25 if label == c else 0.75
            expected -= float(WEIGHT[n]) * alpha * gamma[c] / 2 * (1 - p) ** gamma[c] * math.log(p)
    assert loss(z, LABELS, WEIGHT).item() == pytest.approx(2 * expected / 3, rel=1e-5), "three positives count"


@pytest.mark.parametrize("kind", [EFLLoss, EQFLLoss])
def test_collected_are_the_gradients(kind: type[EFLLoss]) -> None:
    torch.manual_seed(0)
    loss, positive, negative = kind(K, loss_weight=1.5), torch.zeros(K), torch.zeros(K)
    for _ in range(3):
        z = (torch.randn(len(LABELS), K) * 3).requires_grad_()
        loss(z, target(loss), WEIGHT, avg_factor=99.0).backward()
        own = torch.nn.functional.one_hot(LABELS, K + 1)[:, :K].bool()
        positive += (z.grad.abs() * own).sum(dim=0)
        negative += (z.grad.abs() * ~own).sum(dim=0)
        torch.testing.assert_close(loss.pos_grad, positive)
        torch.testing.assert_close(loss.neg_grad, negative)
        torch.testing.assert_close(loss.pos_neg, (positive / negative).clamp(max=1))
    assert loss.pos_neg[3] == 0, "never positive"


@pytest.mark.parametrize("kind", [EFLLoss, EQFLLoss])
def test_extreme_logits(kind: type[EFLLoss]) -> None:
    for value in (-1e4, -120.0, 0.0, 120.0, 1e4):
        loss, z = kind(K), torch.full((len(LABELS), K), value, requires_grad=True)
        found = loss(z, target(loss))
        found.backward()
        assert found.isfinite() and z.grad.isfinite().all() and loss.pos_neg.isfinite().all()


def test_levels_of_a_pyramid_share_one_step() -> None:
    torch.manual_seed(0)
    z = torch.randn(len(LABELS), K)
    whole, parts = EFLLoss(K, average="avg_factor"), EFLLoss(K, average="avg_factor", levels=3)
    for _ in range(2):
        expected = whole(z, LABELS, WEIGHT, avg_factor=4.0)
        rows = [slice(1), slice(1, 4), slice(4, None)]
        found = [parts(z[r], LABELS[r], WEIGHT[r], avg_factor=4.0) for r in rows]
        torch.testing.assert_close(torch.stack(found).sum(), expected)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[name], value)
    with pytest.raises(UserError, match="levels"):
        EFLLoss(K, levels=5)


def test_in_a_one_stage_head_of_mmdet() -> None:
    """RetinaNet's own code calls it: its scores, its levels, and anchors that are ignored."""
    torch.manual_seed(0)
    config = {"type": "ltpipe.EFLLoss", "num_classes": K, "average": "avg_factor", "levels": 5, "use_sigmoid": True}
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
    sampler = {"type": "PseudoSampler"}
    head = build_config(
        {
            "type": "mmdet.RetinaHead",
            "num_classes": K,
            "in_channels": 4,
            "stacked_convs": 1,
            "feat_channels": 4,
            "loss_cls": config,
            "train_cfg": {"assigner": assigner, "sampler": sampler, "allowed_border": -1, "pos_weight": -1},
        }
    )
    assert head.cls_out_channels == K
    feats = tuple(torch.randn(1, 4, size, size) for size in (8, 4, 2, 1, 1))
    objects = InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([2]))
    losses = head.loss_by_feat(*head(feats), [objects], [{"img_shape": (64, 64), "pad_shape": (64, 64)}])
    value = torch.stack(losses["loss_cls"]).sum()
    value.backward()
    collected = head.loss_cls.pos_grad
    assert value.isfinite() and collected[2] > 0 and not collected[[0, 1, 3]].any()
    assert head.loss_cls.neg_grad.all() and 0 < head.loss_cls.pos_neg[2] <= 1

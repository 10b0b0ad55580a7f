"""Mask head with transferred filters: naive values, own-label rows, gradients, mmdet's training and prediction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from ltpipe.errors import UserError
from ltpipe.methods.weight_transfer.mask_head import MaskXTransferHead

WIDTH, CLASSES = 12, 5


def make(**options: Any) -> MaskXTransferHead:
    torch.manual_seed(3)
    head = MaskXTransferHead(
        num_convs=1,
        in_channels=4,
        conv_out_channels=6,
        roi_feat_size=3,
        num_classes=CLASSES,
        class_features=WIDTH,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
        **{"fusion_rank": 2, **options},
    )
    head.init_weights()
    return head


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(CLASSES + 1, WIDTH, generator=torch.Generator().manual_seed(5)).requires_grad_()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(6))


LABELS = torch.tensor([0, 4, 4, 1, 2, 0, 3])


@pytest.mark.parametrize("fusion", ["none", "small", "full"])
def test_logits_equal_the_formula_written_out(fusion: str, weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make(fusion=fusion)
    logits = head(x, weight)
    assert logits.shape == (7, CLASSES + 1, 6, 6)
    conv, t = head.convs[0].conv, head.weight_transfer
    features = F.conv2d(x, conv.weight, conv.bias, padding=1).relu()
    features = F.conv_transpose2d(features, head.upsample.weight, head.upsample.bias, stride=2).relu()
    for n in range(7):
        shared = torch.zeros(36)
        if fusion == "full":
            shared = head.mlp_fusion.weight @ features[n].reshape(-1) + head.mlp_fusion.bias
        elif fusion == "small":
            narrow = head.mlp_fusion[0].weight @ features[n].reshape(-1)
            shared = head.mlp_fusion[1].weight @ narrow + head.mlp_fusion[1].bias
        for c in range(CLASSES + 1):
            row = F.leaky_relu(t[2].weight @ F.leaky_relu(t[0].weight @ weight[c] + t[0].bias) + t[2].bias)
            expected = sum(row[k] * features[n, k] for k in range(6)) + shared.reshape(6, 6)
            torch.testing.assert_close(logits[n, c], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", ["none", "small", "full"])
def test_own_label_rows_equal_the_full_computation(fusion: str, weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make(fusion=fusion)
    own = head(x, weight, LABELS)
    assert own.shape == (7, 1, 6, 6)
    torch.testing.assert_close(own[:, 0], head(x, weight)[torch.arange(7), LABELS])


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_reaches_the_classifier_unless_detached(detach: bool, weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make(transfer_detach=detach)
    head(x, weight, LABELS).sum().backward()
    if detach:
        assert weight.grad is None
    else:
        assert (weight.grad[:CLASSES].abs().sum(1) > 0).all() and (weight.grad[CLASSES] == 0).all()
    assert all(p.grad is not None for p in head.parameters())


def test_mask_gradients_are_exact(weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make().double()
    inputs = x[:2].double().requires_grad_(), weight.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, w: head(f, w, LABELS[:2]), inputs)


def test_nothing_per_class_is_stored(weight: torch.Tensor) -> None:
    shapes = {name: p.shape for name, p in make(fusion="none").named_parameters()}
    assert not any(CLASSES in shape or "conv_logits" in name for name, shape in shapes.items())


def test_fusion_sizes() -> None:
    def size(fusion: str) -> int:
        with torch.device("meta"):
            head = MaskXTransferHead(num_classes=3, fusion=fusion)
        return sum(p.numel() for p in head.mlp_fusion.parameters())

    assert size("full") == 784 * 200704 + 784
    assert size("small") == 16 * 200704 + 784 * 16 + 784
    assert make(fusion="none").mlp_fusion is None


def test_another_classifier_width_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(UserError, match="another width"):
        make()(x, torch.zeros(CLASSES + 1, WIDTH + 1), LABELS)


def sampled(count: int) -> Any:
    boxes = torch.tensor([[2.0, 2, 14, 14]]).repeat(count, 1)
    return SimpleNamespace(
        pos_priors=boxes, pos_assigned_gt_inds=torch.zeros(count, dtype=torch.long), pos_gt_labels=LABELS[:count]
    )


@pytest.mark.parametrize("count", [0, 3])
def test_training_loss_through_mmdet(count: int, weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make()
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:12] = 1
    gt = InstanceData(masks=BitmapMasks(mask.numpy(), 16, 16))
    preds = head(x[:count], weight, LABELS[:count])
    found = head.loss_and_target(preds, [sampled(count)], [gt], ConfigDict(mask_size=6))
    loss = found["loss_mask"]["loss_mask"]
    if count:
        expected = F.binary_cross_entropy_with_logits(preds[:, 0], found["mask_targets"])
        torch.testing.assert_close(loss.squeeze(), expected)
    else:
        assert loss.item() == 0
    loss.backward()
    assert weight.grad is not None


def test_prediction_through_mmdet_uses_the_own_label(weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make()
    boxes = torch.tensor([[1.0, 1, 15, 15]]).repeat(7, 1)
    meta = {"ori_shape": (16, 16), "scale_factor": (1.0, 1.0)}

    def masks(preds: torch.Tensor) -> torch.Tensor:
        found = InstanceData(bboxes=boxes.clone(), labels=LABELS, scores=torch.ones(7))
        config = ConfigDict(mask_thr_binary=0.5)
        with torch.no_grad():
            return head.predict_by_feat((preds,), [found], [meta], config, rescale=True)[0].masks

    own = masks(head(x, weight, LABELS))
    chosen = head(x, weight)[torch.arange(7), LABELS][:, None]
    assert own.shape == (7, 16, 16) and torch.equal(own, masks(chosen)) and own.any()


def test_half_precision(weight: torch.Tensor, x: torch.Tensor) -> None:
    head = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = head(x, weight, LABELS)
    torch.testing.assert_close(narrow.float(), head(x, weight, LABELS), rtol=0.1, atol=0.1)

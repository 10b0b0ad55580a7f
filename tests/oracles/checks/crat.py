"""Reference values of CRAT: box branch for three code states, mask branch for two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmdet.models.losses import CrossEntropyLoss, L1Loss, SmoothL1Loss
from torch import Tensor, nn

from ltpipe.methods.crat.bank import FisherBank, SampleGradients
from ltpipe.methods.crat.functions import update_energy
from ltpipe.methods.crat.part import CRAT
from ltpipe.methods.head_parts import BoxBatch, MaskBatch

METHOD = "crat"
BOX_LOSSES = {"L1": L1Loss, "SmoothL1": SmoothL1Loss}


def check_box(path: Path) -> None:
    """Losses, weights, statistics and gradients of the box branch over several steps of plain SGD."""
    data = np.load(path, allow_pickle=False)
    variants = [name for name in ("v2", "v1", "persample") if f"{name}_loss_bbox" in data.files]
    assert variants
    for variant in variants:
        _check_box_variant(data, variant)


def check_mask(path: Path) -> None:
    """Losses, the unused statistic and gradients of the mask branch, the weights being given."""
    data = np.load(path, allow_pickle=False)
    variants = [name for name in ("v2", "v1") if f"{name}_loss_mask" in data.files]
    assert variants
    for variant in variants:
        _check_mask_variant(data, variant)


def _check_box_variant(data: Any, variant: str) -> None:
    num_classes = int(data["num_classes"])
    head = SimpleNamespace(
        fc_reg=_linear(data["in_reg_weight"], data["in_reg_bias"]),
        fc_cls=None,
        loss_bbox=BOX_LOSSES[str(data["loss"])](loss_weight=float(data["loss_weight"])),
        reg_decoded_bbox=False,
        num_classes=num_classes,
    )
    part = CRAT(num_classes, [1] * num_classes, [1] * num_classes, preset=variant)
    found: dict[str, list[np.ndarray]] = {}
    signed = None
    for x, labels, targets in zip(*map(_tensors, _inputs(data)), strict=True):
        batch = _box_batch(head, x.requires_grad_(), labels, targets)
        extra = part.box_losses(head, batch)["loss_bbox_trans"]
        own_loss = batch.losses["loss_bbox"]
        head.fc_reg.zero_grad()
        own_gradient = torch.autograd.grad(own_loss, head.fc_reg.weight, retain_graph=True)[0]
        (own_loss + extra).backward()
        positive = labels[labels < num_classes]
        signed = _signed_average(signed, own_gradient, positive, num_classes) if variant == "v1" else None
        step = {
            "loss_bbox": own_loss,
            "loss_bbox_trans": extra,
            "weights": part.box_transfer,
            "fisher": _feature_major(part.box_bank.energy),
            "grad_reg_weight": head.fc_reg.weight.grad,
            "grad_reg_bias": head.fc_reg.bias.grad,
            "grad_x": x.grad,
            "npos": torch.tensor(len(positive)),
        }
        if signed is not None:
            step["grad_ema"] = _feature_major(signed)
        for name, value in step.items():
            found.setdefault(name, []).append(value.detach().clone().numpy())
        _descend(head.fc_reg, float(data["lr"]))
    found["final_reg_weight"] = [head.fc_reg.weight.detach().numpy()]
    _compare(data, variant, found)


def _inputs(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return data["in_x"], data["in_labels"], data["in_bbox_targets"]


def _box_batch(head: Any, x: Tensor, labels: Tensor, targets: Tensor) -> BoxBatch:
    positive = labels < head.num_classes
    predictions = head.fc_reg(x)
    own = predictions.view(len(x), head.num_classes, 4)[positive, labels[positive]]
    weights = positive[:, None].float().expand(-1, 4)
    loss = head.loss_bbox(own, targets[positive], weights[positive], avg_factor=len(x))
    return BoxBatch(
        features=x,
        cls_score=x.new_zeros(len(x), head.num_classes + 1),
        labels=labels,
        label_weights=x.new_ones(len(x)),
        bbox_feats=x[:, :, None, None],
        rois=x.new_zeros(len(x), 5),
        losses={"loss_bbox": loss},
        bbox_pred=predictions,
        bbox_targets=targets,
        bbox_weights=weights,
    )


def _signed_average(average: Tensor | None, gradient: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The older state's average of signed gradients, which it keeps beside the squared ones and never reads."""
    gradient = gradient.view(num_classes, 4, -1)
    average = torch.zeros_like(gradient) if average is None else average
    present = labels.unique()
    update_energy(average, gradient[present], present, 0.1, decay_absent=True)
    return average


def _check_mask_variant(data: Any, variant: str) -> None:
    num_classes, width = data["in_logits_weight"].shape
    conv = nn.Conv2d(width, num_classes, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(data["in_logits_weight"])[:, :, None, None])
        conv.bias.copy_(torch.from_numpy(data["in_logits_bias"]))
    head = SimpleNamespace(conv_logits=conv, loss_mask=CrossEntropyLoss(use_mask=True))
    part = CRAT(num_classes, [1] * num_classes, [1] * num_classes, preset=variant)
    bank = FisherBank(num_classes, 1, momentum=0.01)
    bank.energy = torch.zeros(num_classes, 1, width)
    found: dict[str, list[np.ndarray]] = {}
    inputs = (data["in_x"], data["in_labels"], data["in_mask_targets"], data["in_weights"])
    for x, labels, targets, weights in zip(*map(_tensors, inputs), strict=True):
        logits = conv(x.requires_grad_())
        own_loss = head.loss_mask(logits, targets, labels).sum()
        part.box_transfer = weights
        extra = part.mask_losses(head, MaskBatch(x, logits, targets, labels))["loss_mask_trans"]
        conv.zero_grad()
        if variant == "v2":
            gradient = torch.autograd.grad(own_loss, logits, retain_graph=True)[0][torch.arange(len(x)), labels]
            filters = torch.einsum("pchw,phw->pc", x.detach(), gradient)
            ones = torch.ones(len(x), 1)
            bank.update(SampleGradients(filters, ones, ones), labels)
        (own_loss + extra).backward()
        step = {
            "loss_mask": own_loss,
            "loss_mask_trans": extra,
            "fisher": bank.energy.flatten(1),
            "grad_logits_weight": conv.weight.grad.flatten(1),
            "grad_x": x.grad,
        }
        for name, value in step.items():
            found.setdefault(name, []).append(value.detach().clone().numpy())
        _descend(conv, float(data["lr"]))
    _compare(data, variant, found)


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def _tensors(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def _feature_major(energy: Tensor) -> Tensor:
    """The reference flattens ``(d, 4)``, ours is ``(4, d)`` as the layer's weight."""
    return energy.transpose(1, 2).flatten(1)


def _descend(layer: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= rate * parameter.grad


def _compare(data: Any, variant: str, found: dict[str, list[np.ndarray]]) -> None:
    names = [name for name in data.files if name.startswith(f"{variant}_")]
    assert {name.removeprefix(f"{variant}_") for name in names} == found.keys()
    for name in names:
        expected, steps = data[name], found[name.removeprefix(f"{variant}_")]
        if name.endswith("final_reg_weight"):
            expected = expected[None]
        # Slim files keep only the last iteration.
        for want, got in zip(expected, steps[-len(expected) :], strict=True):
            if name.endswith("_weights"):
                assert not want[len(got) :].any()
                np.testing.assert_allclose(got, want[: len(got)], rtol=0, atol=1e-4, err_msg=name)
            else:
                tolerance = max(1e-4 * float(np.abs(expected).max()), 1e-6)
                if name.endswith("_fisher"):
                    tolerance = 1e-4 * float(np.abs(expected).max())
                np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=name)


CHECKS = {"box_": check_box, "mask_": check_mask}

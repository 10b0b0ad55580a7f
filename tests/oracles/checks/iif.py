"""IIF against vectors of ``kostas1515/iif``: weights, loss, scores, normalised layers, and IIF with FASA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from ltpipe.methods.fasa.counters import PerClassLossMeter, row_losses
from ltpipe.methods.fasa.part import FASA
from ltpipe.methods.head_parts import BoxBatch
from ltpipe.methods.iif.loss import IIFLoss, class_weights, iif_logits, iif_scores
from ltpipe.methods.iif.weights import iif_weights, parse_variant
from ltpipe.methods.normed.layers import NormedLinear, NormedMaskHead, normed_linear

METHOD = "iif"


def load(path: Path) -> SimpleNamespace:
    """Arrays as tensors, single numbers as numbers."""
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    return SimpleNamespace(**{k: v.item() if v.ndim == 0 else torch.from_numpy(v) for k, v in values.items()})


def named(z: SimpleNamespace, prefix: str) -> dict[str, Any]:
    """Values whose name starts with ``prefix``, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in vars(z).items() if name.startswith(prefix)}


def loss_with(weights: Tensor) -> IIFLoss:
    """An IIF loss with the given weights in place of weights computed from counts."""
    classes = len(weights) - 1
    loss = IIFLoss(classes, [1] * classes, [1] * classes, num_images=3)
    loss.weights.copy_(weights)
    return loss


def check_weights(path: Path) -> None:
    """All columns of the shipped tables from the counts, and the vectors as the loss holds them."""
    z = load(path)
    images, instances = z.img_freq.numpy(), z.instance_freq.numpy()
    for name, values in named(z, "w_").items():
        variant, count = parse_variant(name)
        per_class, total = (images, z.num_images) if count == "image" else (instances, z.num_instances)
        assert_close(iif_weights(per_class, total, variant), values.numpy(), rtol=1e-12, atol=4e-14)
    for name, values in named(z, "loss_weights_").items():
        loss = IIFLoss(len(images), images.tolist(), instances.tolist(), z.num_images, variant=name)
        assert_close(loss.weights, values.reshape(-1), rtol=1e-6, atol=0)


def check_classification(path: Path) -> None:
    """Weights with and without norm, loss and adjusted logits of the classification code."""
    z = load(path)
    counts = z.counts.numpy()
    close = {"rtol": 2e-5, "atol": 1e-6}

    def weights(variant: str, p_norm: int = 0) -> Tensor:
        return torch.from_numpy(iif_weights(counts, int(counts.sum()), variant, p_norm=p_norm)).float()

    for name, values in named(z, "w_").items():
        variant, p_norm = name.split("_norm")
        assert_close(weights(variant, int(p_norm)), values, **close)
    for variant, value in named(z, "loss_mean_").items():
        assert_close(F.cross_entropy(iif_logits(z.pred, weights(variant)), z.target).item(), value, **close)
    for variant, value in named(z, "loss_sum_").items():
        logits = iif_logits(z.pred, weights(variant))
        assert_close(F.cross_entropy(logits, z.target, reduction="sum").item(), value, **close)
    for variant, values in named(z, "infer_").items():
        assert_close(iif_logits(z.pred, weights(variant)), values, **close)


def check_loss(path: Path) -> None:
    """Weights from the counts; loss, loss per RoI, gradient, scores, and accuracy on weighted logits."""
    z = load(path)
    close = {"rtol": 1e-4, "atol": 1e-6}
    for name, expected in named(z, "weights_").items():
        loss = loss_with(expected)
        if hasattr(z, "img_freq"):
            counts = z.img_freq.tolist(), z.instance_freq.tolist()
            assert sum(counts[1]) == z.num_instances
            computed = class_weights(len(expected) - 1, *counts, z.num_images, name, None)
            assert_close(computed, expected, **close)
            loss = IIFLoss(len(expected) - 1, *counts, z.num_images, variant=name)
        logits = z.cls_score.clone().requires_grad_()
        value = loss(logits, z.labels, z.label_weights, avg_factor=z.avg_factor)
        value.backward()
        assert_close(value.item(), getattr(z, f"loss_{name}"), **close)
        rows = loss(logits, z.labels, z.label_weights, reduction_override="none")
        assert_close(rows.detach(), getattr(z, f"loss_none_{name}"), rtol=1e-4, atol=1e-4)
        loss.loss_weight = 2.0
        twice = loss(z.cls_score, z.labels, z.label_weights, avg_factor=z.avg_factor)
        assert_close(twice.item(), getattr(z, f"loss_lw2_{name}"), **close)
        for kind, ours in (("scores", loss.get_activation(z.cls_score)), ("grad", logits.grad)):
            whole, first = getattr(z, f"{kind}_{name}", None), getattr(z, f"{kind}_{name}_rows0_4", None)
            assert whole is not None or first is not None
            if whole is not None:
                assert_close(ours, whole, **close)
            if first is not None:
                assert_close(ours[:4], first, **close)
        best = loss.get_activation(z.cls_score).argmax(dim=1)
        weighted_accuracy = (best == z.labels).float().mean() * 100
        assert_close(loss.get_accuracy(z.cls_score, z.labels)["acc_classes"][0], weighted_accuracy, **close)


def check_counting_loss(path: Path) -> None:
    """Loss in training and sums by class while counting."""
    z = load(path)
    loss, meter = loss_with(z.weights), PerClassLossMeter(len(z.weights) - 1)
    close = {"rtol": 1e-4, "atol": 1e-6}
    for step, (logits, labels, weights) in enumerate(zip(z.cls_score, z.labels, z.label_weights, strict=True)):
        avg_factor = max(float((weights > 0).sum()), 1.0)
        assert_close(loss(logits, labels, weights, avg_factor=avg_factor), z.loss_train_mode[step], **close)
        mean = meter.add(row_losses(loss, logits, labels, weights), labels)
        assert_close(mean.float(), z.loss_count_mode[step], **close)
    assert_close(meter.totals.float(), z.cum_losses, **close)
    assert_close(meter.counts.float(), z.cum_labels)


class Injected(FASA):
    """FASA with the reference's draws."""

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the draws of the file, of classes that can be drawn."""
        features, labels = self.injected
        assert self.seen[labels].all() and (self.prob[labels] > 0).all()
        return features, labels


def check_combined_head(path: Path) -> None:
    """FASA, IIF and the normalised classifier together: losses, gradients, statistics, scores."""
    z = load(path)
    close = {"rtol": 1e-4, "atol": 1e-5}
    classes, width = z.mean_before.shape
    head = SimpleNamespace(
        fc_cls=NormedLinear(width, classes + 1, temperature=z.temperature), loss_cls=loss_with(z.iif_weights)
    )
    head.fc_cls.load_state_dict({"weight": z.fc_weight, "bias": z.fc_bias})
    fasa = Injected(classes, [1] * classes, z.instance_freq.tolist())
    used = getattr(z, "used_before", None)
    seen = used > 0 if used is not None else ((z.mean_before != 0) | (z.var_before != 0)).any(dim=1)
    state = {"mean": z.mean_before, "var": z.var_before, "seen": seen, "prob": z.prob}
    fasa.load_state_dict({**fasa.state_dict(), **state})
    fasa.epoch, fasa.injected = z.epoch, (z.virtual.reshape(-1, width), z.virtual_labels.long())

    features = z.embedding.clone().requires_grad_()
    cls_score = head.fc_cls(features)
    assert_close(cls_score, z.cls_score, **close)
    avg_factor = max(float((z.label_weights > 0).sum()), 1.0)
    real = head.loss_cls(cls_score, z.labels, z.label_weights, avg_factor=avg_factor)
    rois = torch.zeros(len(features), 5)
    batch = BoxBatch(features, cls_score, z.labels, z.label_weights, features, rois, {"loss_cls": real})
    total = real + fasa.box_losses(head, batch)["loss_fasa"]
    total.backward()
    assert_close(total.item(), z.loss_cls, **close)
    assert_close(fasa.mean, z.mean_after, **close)
    assert_close(fasa.var, z.var_after, **close)
    assert_close(head.fc_cls.weight.grad, z.grad_fc_weight, **close)
    assert_close(head.fc_cls.bias.grad, z.grad_fc_bias, **close)
    assert_close(features.grad, z.grad_embedding, **close)
    assert_close(iif_scores(cls_score.detach(), z.iif_weights), z.scores, **close)


def check_normed_linear(path: Path) -> None:
    """Output, gradients of ``sum(y^2)`` and initial spread of the normalised classifier."""
    z = load(path)
    layer = NormedLinear(*z.weight.shape[::-1], temperature=z.temperature, power=z.power, eps=z.eps)
    n = layer.weight.numel()
    # two independent draws of the spread of N(0, 0.01^2)
    assert abs(float(layer.weight.detach().std()) - z.init_std) < 6 * 0.01 * (2 / (2 * (n - 1))) ** 0.5
    layer.load_state_dict({"weight": z.weight, "bias": z.bias})
    y = layer(z.x)
    y.square().sum().backward()
    assert_close(y.detach(), z.y, rtol=2e-5, atol=2e-5)
    assert_close(layer.bias.grad, z.grad_bias, rtol=2e-5, atol=2e-6 * float(z.grad_bias.abs().max()))
    for ours, theirs in zip(layer.weight.grad, z.grad_weight, strict=True):
        # a sum of terms larger than itself; by rows, because a row of zeros has a gradient of 1 / eps
        assert_close(ours, theirs, rtol=2e-5, atol=1e-5 * float(theirs.abs().max()))


def check_normed_conv(path: Path) -> None:
    """Output of the mask head's predictor, reached through a head without other layers."""
    z = load(path)
    head = NormedMaskHead(
        num_convs=0,
        in_channels=z.weight.shape[1],
        num_classes=len(z.weight),
        upsample_cfg={"type": None},
        temperature=z.temperature,
        norm_over_kernel=bool(z.norm_over_kernel),
    )
    head.conv_logits.load_state_dict({"weight": z.weight, "bias": z.bias})
    assert_close(head(z.x).detach(), z.y, rtol=2e-5, atol=2e-5)


def check_iif_normed_linear(path: Path) -> None:
    """Weighting the rows before normalising them leaves only the sign of the weight."""
    z = load(path)
    rows = z.weight * z.iif_weights.reshape(-1, 1)
    assert_close(normed_linear(z.x, rows, z.bias, z.temperature, 1.0, 1e-6), z.y, rtol=2e-5, atol=2e-5)
    signs = z.iif_weights.sign().reshape(-1, 1)
    plain = normed_linear(z.x, z.weight * signs, z.bias, z.temperature, 1.0, 1e-6)
    smallest = min(float(rows.norm(dim=1).min()), float(z.weight.norm(dim=1).min()))
    assert float((plain - z.y).abs().max()) < 2 * z.temperature * 1e-6 / max(smallest, 1e-6)


CHECKS = {
    "classification_": check_classification,
    "combined_head": check_combined_head,
    "counting_loss": check_counting_loss,
    "iif_normed_linear": check_iif_normed_linear,
    "loss_": check_loss,
    "normed_conv": check_normed_conv,
    "normed_linear": check_normed_linear,
    "weights_": check_weights,
}

"""Reference values of the EQL, EQLv2 and Seesaw losses and of the normalised and rescaled last layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.layers import NormedConv2d
from torch import Tensor

from ltpipe.methods.decoupled.calibrators import lws_logits
from ltpipe.methods.eql.loss import EQLLoss
from ltpipe.methods.eqlv2.loss import EQLv2Loss, eqlv2_weights
from ltpipe.methods.normed.layers import NormedLinear
from ltpipe.methods.seesaw.loss import SyncedSeesawLoss

METHOD = "lt_losses"


def check_eql(path: Path) -> None:
    """Tail classes, losses and gradients."""
    data = np.load(path, allow_pickle=False)
    frequency = data["freq"].astype(np.float64)
    # The files hold frequencies, the loss takes counts: any total does, as only the quotient matters.
    total = 2**24
    loss = EQLLoss(
        len(frequency),
        image_counts=(frequency * total).tolist(),
        instance_counts=[0] * len(frequency),
        num_annotated_images=total,
        threshold=float(data["lambda_"]),
        loss_weight=float(data["loss_weight"]),
    )
    assert int(loss.tail.sum()) == int(data["num_tail"])
    for t, logits in enumerate(_leaves(data["in_logits"])):
        value = loss(logits, torch.from_numpy(data["in_labels"][t]))
        value.backward()
        close(value, data["out_loss"][t])
        close(logits.grad, data["out_grad"][t])


def check_eqlv2(path: Path) -> None:
    """Weights used, losses, gradients, accumulators and test scores."""
    data = np.load(path, allow_pickle=False)
    num_classes = int(data["num_classes"])
    options = {name: float(data[name]) for name in ("gamma", "mu", "alpha", "loss_weight")}
    loss = EQLv2Loss(num_classes, **options)
    for name in ("pos_grad", "neg_grad", "pos_neg"):
        if f"state_start_{name}" in data.files:
            getattr(loss, name).copy_(torch.from_numpy(data[f"state_start_{name}"]))
    for t, logits in enumerate(_leaves(data["in_logits"])):
        positive, negative = eqlv2_weights(loss.pos_neg, loss.gamma, loss.mu, loss.alpha)
        close(positive, data["out_pos_w"][t])
        close(negative, data["out_neg_w"][t])
        value = loss(logits, torch.from_numpy(data["in_labels"][t]))
        value.backward()
        close(value, data["out_loss"][t])
        close(logits.grad, data["out_grad"][t])
        for name in ("pos_grad", "neg_grad", "pos_neg"):
            close(getattr(loss, name), data[f"out_{name}"][t])
    close(loss.get_activation(logits), data["out_activation_last"])
    without = EQLv2Loss(num_classes, **options, test_with_obj=False)
    close(without.get_activation(logits), data["out_activation_last_noobj"])


def check_seesaw(path: Path) -> None:
    """Both losses, counts, gradients and test scores."""
    data = np.load(path, allow_pickle=False)
    options = {name: float(data[name]) for name in ("p", "q", "eps", "loss_weight")}
    loss = SyncedSeesawLoss(int(data["num_classes"]), **options)
    loss.cum_samples.copy_(torch.from_numpy(data["cum_start"]))
    for t, logits in enumerate(_leaves(data["in_logits"])):
        labels, weights = (torch.from_numpy(data[name][t]) for name in ("in_labels", "in_label_weights"))
        values = loss(logits, labels, weights, avg_factor=float(data["in_avg_factor"][t]))
        sum(values.values()).backward()
        close(values["loss_cls_objectness"], data["out_loss_obj"][t])
        close(values["loss_cls_classes"], data["out_loss_cls"][t])
        close(logits.grad, data["out_grad"][t])
        np.testing.assert_array_equal(loss.cum_samples.numpy(), data["out_cum"][t])
    close(loss.get_activation(logits), data["out_activation_last"])


def check_normed_and_lws(path: Path) -> None:
    """Outputs of the normalised and the rescaled layers, and gradients of the sum of their squares."""
    data = np.load(path, allow_pickle=False)
    temperature, power = float(data["temperature"]), float(data["power"])
    weight, bias = torch.from_numpy(data["in_weight"]), torch.from_numpy(data["in_bias"])

    classes, width = weight.shape
    layer = NormedLinear(width, classes, temperature=temperature, power=power)
    layer.load_state_dict({"weight": weight, "bias": bias})
    x = torch.from_numpy(data["in_x"]).requires_grad_()
    out = layer(x)
    out.square().sum().backward()
    close(out, data["out_linear"])
    close(layer.weight.grad, data["out_grad_weight"])
    close(x.grad, data["out_grad_x"])

    maps = torch.from_numpy(data["in_xc"])
    kernels = {
        "conv1x1": (weight[:, :, None, None], False),
        "conv3_norm_over_kernel": (torch.from_numpy(data["in_weight3"]), True),
        "conv3_channel_norm": (torch.from_numpy(data["in_weight3"]), False),
    }
    for name, (kernel, whole) in kernels.items():
        size = kernel.shape[-1]
        conv = NormedConv2d(
            width, classes, size, padding=size // 2, temperature=temperature, power=power, norm_over_kernel=whole
        )
        conv.load_state_dict({"weight": kernel, "bias": bias})
        close(conv(maps), data[f"out_{name}"])

    scale = torch.from_numpy(data["in_lws_scale"]).requires_grad_()
    out = lws_logits(x.detach(), weight, bias, scale)
    out.square().sum().backward()
    close(out, data["out_lws"])
    close(scale.grad, data["out_lws_grad_scale"])


def close(found: Tensor, expected: Any) -> None:
    """Relative 1e-4 of the largest absolute value, absolute 1e-6."""
    expected = np.asarray(expected)
    tolerance = max(1e-4 * float(np.abs(expected).max(initial=0)), 1e-6)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=tolerance)


def _leaves(array: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(step).requires_grad_() for step in array]


CHECKS = {"eql_": check_eql, "eqlv2_": check_eqlv2, "seesaw_": check_seesaw, "normed_and_lws": check_normed_and_lws}

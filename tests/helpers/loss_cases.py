"""Reference cases of classification losses: arrays by name, steps one after another, the usual tolerance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ltpipe.methods.eql.drop import DropLoss
from ltpipe.methods.eql.functions import spared_on_background, spared_on_foreground, tail_share

Arrays = dict[str, Any]
TOTAL = 2**24


def load(path: Path) -> Arrays:
    """Return the arrays of a file as tensors, single numbers as numbers."""
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    return {name: v.item() if v.ndim == 0 else torch.from_numpy(v) for name, v in values.items()}


def close(found: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    """Assert closeness: relative to the largest absolute value, absolute 1e-6."""
    expected = torch.as_tensor(expected).double()
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    found = found.detach().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=max(1e-6, relative * largest), equal_nan=True)


def check_steps(data: Arrays, step: Callable[[int, Tensor, Tensor], Tensor], relative: float = 1e-4) -> None:
    """Assert loss and gradient of every step.

    Args:
        data: ``in_logits`` ``(T, N, C)``, ``in_labels`` ``(T, N)``, ``out_loss`` ``(T,)``, ``out_grad`` as the logits.
        step: Called with the number of the step, logits that want a gradient, and labels; returns the loss.
        relative: Tolerance.
    """
    for t, labels in enumerate(data["in_labels"]):
        logits = data["in_logits"][t].clone().requires_grad_()
        value = step(t, logits, labels)
        value.backward()
        close(value, data["out_loss"][t], relative)
        close(logits.grad, data["out_grad"][t], relative)


def check_droploss(path: Path, kind: type[DropLoss]) -> None:
    """Assert tail, share of tail RoIs, dropped terms, losses, gradients and test scores."""
    data = load(path)
    classes = len(data["freq"])
    # The files hold frequencies, the loss takes counts: any total does, as only the quotient matters.
    counts = {"image_counts": (data["freq"].double() * TOTAL).tolist(), "instance_counts": [0] * classes}
    options = {"threshold": data["lambda_"], "loss_weight": data["loss_weight"]}
    loss = kind(classes, **counts, num_annotated_images=TOTAL, **options)
    assert int(loss.tail.sum()) == data["num_tail"]
    dropped = data["out_dropped"].bool()

    def step(t: int, logits: Tensor, labels: Tensor) -> Tensor:
        close(tail_share(labels, loss.tail), data["out_ratio"][t])
        if "in_uniform" in data:
            uniform = data["in_uniform"][t].float() / 256
            spared = spared_on_foreground(labels, loss.tail) | spared_on_background(labels, loss.tail, uniform)
            assert spared.equal(dropped[t])
        foreground = labels < classes
        assert loss.spared(labels)[foreground].equal(dropped[t][foreground])
        with patch.object(loss, "spared", lambda _: dropped[t]):
            return loss(logits, labels)

    check_steps(data, step)
    close(loss.get_activation(data["in_logits"][-1]), data["out_activation_last"])

"""EFL and EQFL against the published losses, with the gradients they collect."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ltpipe.methods.efl.loss import EFLLoss, EQFLLoss
from tests.helpers.loss_cases import check_steps, close, load

METHOD = "efl"
STATE = ("pos_grad", "neg_grad", "pos_neg")


def check_efl(path: Path) -> None:
    """Focusing parameters, losses, gradients and accumulators of every step; ignored anchors leave no trace."""
    data = load(path)
    options = {"gamma": data["focal_gamma"], "scale": data["scale_factor"], "average": "avg_factor"}
    quality = data.get("in_quality")
    classes = data["num_classes"]
    loss = (
        EQFLLoss(classes, **options) if quality is not None else EFLLoss(classes, alpha=data["focal_alpha"], **options)
    )
    for name in STATE:
        getattr(loss, name).copy_(data[f"state_start_{name}"])

    def step(t: int, logits: Tensor, labels: Tensor) -> Tensor:
        if t:
            for name in STATE:
                close(getattr(loss, name), data[f"out_{name}"][t - 1])
        close(loss.focus, data["out_focus"][t])
        target = labels.where(labels >= 0, classes)  # mmdet's heads give what they ignore the weight 0
        return loss(
            logits,
            target if quality is None else (target, quality[t]),
            (labels >= 0).float(),
            avg_factor=float(data["in_normalizer"][t]),
        )

    check_steps(data, step)
    for name in STATE:
        close(getattr(loss, name), data[f"out_{name}"][-1])


CHECKS = {"efl_": check_efl, "eqfl_": check_efl}

"""ECM against the published forward pass with weights in float64."""

from __future__ import annotations

from pathlib import Path

from ltpipe.methods.ecm.loss import ECMLoss
from tests.helpers.loss_cases import check_steps, close, load

METHOD = "ecm"


def check_ecm(path: Path) -> None:
    """Margins, weights, losses, gradients and test scores; label weights do not count."""
    data = load(path)
    none = [0] * int(data["num_classes"])
    options = {"background_ratio": data["fg_bg_ratio"], "loss_weight": data["loss_weight"]}
    loss = ECMLoss(len(none), image_counts=none, instance_counts=data["counts"].tolist(), **options)
    close(loss.class_weight, data["out_class_weight"])
    close(loss.margin, data["out_pos_margin"] - data["out_neg_margin"])
    weights, factors = data.get("in_label_weights"), data.get("in_avg_factor")

    def step(t: int, logits: object, labels: object) -> object:
        return loss(logits, labels, None if weights is None else weights[t], None if factors is None else factors[t])

    check_steps(data, step)
    close(loss.get_activation(data["in_logits"][-1]), data["out_activation_last"])


CHECKS = {"ecm_": check_ecm}

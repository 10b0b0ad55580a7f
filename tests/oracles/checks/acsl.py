"""ACSL against the published loss, with the stored draws."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from ltpipe.methods.acsl.functions import ORDER
from ltpipe.methods.acsl.loss import ACSLLoss
from tests.helpers.loss_cases import check_steps, close, load

METHOD = "acsl"


def check_acsl(path: Path) -> None:
    """Losses, gradients and test scores; our own draws are as many background RoIs."""
    data = load(path)
    letters = [ORDER[group] for group in data["groups"].tolist()]
    loss = ACSLLoss(len(letters), [1] * len(letters), letters, score_threshold=data["score_thr"])
    stored = torch.stack([data["out_rare_rows"], data["out_common_rows"]], dim=1).bool()

    def step(t: int, logits: Tensor, labels: Tensor) -> Tensor:
        ours = loss.background_rows(labels)
        assert ours.sum(dim=1).equal(stored[t].sum(dim=1)) and not ours[:, labels < len(letters)].any()
        with patch.object(loss, "background_rows", lambda _: stored[t]):
            return loss(logits, labels)

    check_steps(data, step)
    close(loss.get_activation(data["in_logits"][-1]), data["out_activation_last"])


CHECKS = {"acsl_": check_acsl}

"""Federated loss against CenterNet2's, draws included."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.methods.federated.loss import FederatedLoss, drawn_classes
from tests.helpers.loss_cases import Arrays, check_steps, close, load

METHOD = "federated"


def made(data: Arrays) -> FederatedLoss:
    """The loss of a file."""
    counts = data["image_count"].tolist()
    return FederatedLoss(len(counts), counts, data["num_sample_cats"], data["freq_weight_power"])


def check_loss(path: Path) -> None:
    """Classes of every step from the stored seed, losses, gradients, test scores; the softmax form is cross entropy."""
    data = load(path)
    loss, classes = made(data), data["num_classes"]

    def step(t: int, logits: Tensor, labels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(data["torch_seed"][t]))
        noise = torch.empty(classes + 1).exponential_(generator=generator)
        drawn = drawn_classes(labels, loss.frequency, loss.num_sampled, noise)
        assert drawn.nonzero()[:, 0].tolist() == sorted(c for c in data["out_classes"][t].tolist() if c >= 0)
        assert int(drawn.sum()) == max(int(data["num_sample_cats_used"][t]), len(labels.unique()))
        assert drawn[:classes].equal(data["out_mask"][t].bool())
        close(F.cross_entropy(logits.detach(), labels), data["out_softmax_loss"][t])
        with patch.object(loss, "classes", lambda _: drawn):
            return loss(logits, labels)

    check_steps(data, step)
    close(loss.get_activation(data["in_logits"][-1]), data["out_activation_last"])


def check_draw(path: Path) -> None:
    """How often each class is drawn by the loss's own generator."""
    data = load(path)
    loss, draws = made(data), data["draws"]
    found = torch.stack([loss.classes(data["in_labels"]) for _ in range(draws)])
    torch.testing.assert_close(found[:, :-1].float().mean(dim=0), data["out_inclusion"], rtol=0, atol=0.02)


CHECKS = {"federated_": check_loss, "federated_draw_": check_draw}

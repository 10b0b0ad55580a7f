"""Equalization loss, EQL (arXiv 2003.05176).

With ``f_j`` the share of annotated images that contain class ``j`` and ``T_j = [f_j < lambda]`` marking the tail,
``L = (1 / N) sum_n sum_j w_nj BCE(z_nj, y_nj)``, ``w_nj = 1 - E_n T_j (1 - y_nj)``, ``E_n = [n is foreground]``:
foreground RoIs do not push the scores of tail classes down, background RoIs push all classes down. Acts as
``loss_cls`` with ``K`` sigmoid channels (no background channel). Needs image counts and the number of annotated
images, or instance counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmdet.models.losses import accuracy
from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.registry import method


def tail_classes(statistic: Tensor, threshold: float) -> Tensor:
    """Return ``(K,)`` bool, the classes whose float32 statistic ``(K,)`` lies below the threshold."""
    return statistic.float() < threshold


def eql_rows(logits: Tensor, labels: Tensor, tail: Tensor) -> Tensor:
    """Return each RoI's loss, ``sum_j w_nj BCE(z_nj, y_nj)``.

    Args:
        logits: ``(N, K)`` float32.
        labels: ``(N,)`` int64, background ``K``.
        tail: ``(K,)`` bool.

    Returns:
        ``(N,)`` float32.
    """
    num_classes = logits.shape[1]
    target = logits.new_zeros(len(logits), num_classes + 1).scatter_(1, labels[:, None], 1.0)[:, :num_classes]
    spared = (labels < num_classes)[:, None] & tail
    weight = torch.maximum((~spared).to(logits.dtype), target)
    return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum(dim=1)


@method("loss", "eql")
class EQLLoss(nn.Module):
    """EQL; scores at test time are ``sigmoid(z)`` with a background column of 0.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        num_annotated_images: Training images with at least one annotation (LVIS v1: 99388); needed by
            ``image_frequency``.
        threshold: ``lambda``, below which a class is tail (repository: 0.0011 for LVIS v1, 0.00177 for LVIS v0.5; 1652
            instances for Open Images).
        statistic: What is compared: the share of images, or the number of instances.
        loss_weight: Factor of the loss (repository: 1.0).
        prior_prob: Initial score of every class; the head sets the classifier's bias by it (repository: 0.001).

    Raises:
        UserError: The number of annotated images is missing, or smaller than a class's images.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    softmax_scores = False

    tail: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        num_annotated_images: int | None = None,
        threshold: float = 0.0011,
        statistic: Literal["image_frequency", "instance_count"] = "image_frequency",
        loss_weight: float = 1.0,
        prior_prob: float = 0.001,
    ) -> None:
        super().__init__()
        self.num_classes, self.loss_weight, self.prior_prob = num_classes, loss_weight, prior_prob
        if statistic == "instance_count":
            values = torch.tensor(instance_counts, dtype=torch.float64)
        else:
            images = torch.tensor(image_counts, dtype=torch.float64)
            if num_annotated_images is None or num_annotated_images < images.max():
                raise UserError(
                    "eql needs the number of annotated training images",
                    where="model.loss.num_annotated_images",
                    got=num_annotated_images,
                    allowed=f"at least {int(images.max())}, the images of the most frequent class",
                )
            values = images / num_annotated_images
        self.register_buffer("tail", tail_classes(values, threshold), persistent=False)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: Literal["none", "mean", "sum"] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss. The repository ignores ``weight`` and ``avg_factor``; with weights of 1 the values agree.

        Args:
            cls_score: ``(N, K)`` float logits.
            label: ``(N,)`` int64, background ``K``.
            weight: ``(N,)`` float label weights, or None for 1.
            avg_factor: Divisor of the sum over RoIs, or None for ``N``.
            reduction_override: ``none`` (a value per RoI), ``mean`` (default) or ``sum``.
            **kwargs: Not used.
        """
        with torch.autocast(cls_score.device.type, enabled=False):
            rows = eql_rows(cls_score.float(), label, self.tail)
        reduction = reduction_override or "mean"
        if reduction == "mean" and avg_factor is None:
            avg_factor = max(len(rows), 1)
        loss: Tensor = self.loss_weight * weight_reduce_loss(rows, weight, reduction, avg_factor)
        return loss

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the channels of the classifier, ``K``."""
        return num_classes

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(N, K + 1)`` of logits ``(N, K)``; the background column is 0."""
        return F.pad(cls_score.sigmoid(), (0, 1))

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return ``acc_classes``, the percentage of foreground RoIs whose best class is right."""
        foreground = labels < self.num_classes
        return {"acc_classes": accuracy(cls_score[foreground], labels[foreground])}

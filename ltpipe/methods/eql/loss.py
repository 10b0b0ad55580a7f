"""Equalization loss, EQL (arXiv 2003.05176).

With ``f_j`` the share of annotated images that contain class ``j`` and ``T_j = [f_j < lambda]`` marking the tail,
``L = (1 / N) sum_n sum_j w_nj BCE(z_nj, y_nj)``, ``w_nj = 1 - E_n T_j (1 - y_nj)``, ``E_n = [n is foreground]``:
foreground RoIs do not push the scores of tail classes down, background RoIs push all classes down. Acts as
``loss_cls`` with ``K`` sigmoid channels (no background channel). Needs image counts and the number of annotated
images, or instance counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.eql.functions import bce_terms, kept_rows, spared_on_foreground, tail_classes
from ltpipe.methods.sigmoid_loss import SigmoidLoss
from ltpipe.registry import method


@method("loss", "eql")
class EQLLoss(SigmoidLoss):
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

    background = "none"
    weighted = True  # the repository ignores label weights and average factor; with weights of 1 the values agree

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
        super().__init__(num_classes, loss_weight)
        self.prior_prob = prior_prob
        if statistic == "instance_count":
            values = torch.tensor(instance_counts, dtype=torch.float64)
        else:
            images = torch.tensor(image_counts, dtype=torch.float64)
            if num_annotated_images is None or num_annotated_images < images.max():
                raise UserError(
                    "this loss needs the number of annotated training images",
                    where="model.loss.num_annotated_images",
                    got=num_annotated_images,
                    allowed=f"at least {int(images.max())}, the images of the most frequent class",
                )
            values = images / num_annotated_images
        self.register_buffer("tail", tail_classes(values, threshold), persistent=False)

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI."""
        return kept_rows(self.terms, logits, labels, self.spared(labels))

    def spared(self, labels: Tensor) -> Tensor:
        """Return which terms do not count, ``(N, K)`` bool."""
        return spared_on_foreground(labels, self.tail)

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every RoI and class, ``(N, K)`` float32."""
        return bce_terms(logits, target)

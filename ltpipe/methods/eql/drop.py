"""DropLoss and GOL: what EQL spares on foreground RoIs, they also spare, at random, on background RoIs.

DropLoss (AAAI 2021, timy90022/DropLoss): with ``T_j = [f_j < lambda]`` as in EQL and ``rho`` the share
of foreground RoIs of this process whose class is in the tail, ``L = (1 / N) sum_n sum_j w_nj BCE(z_nj, y_nj)``,
``w_nj = 1 - T_j (1 - y_nj) D_nj``, ``D_nj = 1`` on foreground and ``[u_nj > rho]`` on background, ``u`` uniform.
GOL (ECCV 2022, kostas1515/GOL) is the same with the Gumbel distribution function ``exp(-exp(-z))`` as score.

Both act as ``loss_cls`` with ``K`` channels (none of the background). They need image counts and the number of
annotated images, or instance counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltpipe.methods.box_layers import is_plain_linear
from ltpipe.methods.eql.functions import gumbel_probability, gumbel_terms, spared_on_background
from ltpipe.methods.eql.loss import EQLLoss
from ltpipe.methods.seeded_draws import SeededDraws
from ltpipe.registry import method


@method("loss", "droploss")
class DropLoss(EQLLoss, SeededDraws):
    """DropLoss; scores at test time are ``sigmoid(z)`` with a background column of 0.

    Label weights and the average factor are ignored, as in the repository.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        num_annotated_images: Training images with at least one annotation.
        threshold: ``lambda``, below which a class is tail (LVIS v0.5: 0.00177; LVIS v1: the repository's files say
            0.0010062 and 0.00177, GOL's 0.0011).
        seed: Seed of the draws, which also depend on the iteration and the process.
    """

    weighted = False

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
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_classes,
            image_counts,
            instance_counts,
            num_annotated_images,
            threshold,
            statistic,
            loss_weight,
            prior_prob,
        )
        self.start_draws(seed)

    def spared(self, labels: Tensor) -> Tensor:
        """Return which terms do not count, ``(N, K)`` bool."""
        generator = self.generator(labels.device)
        uniform = torch.rand(len(labels), self.num_classes, generator=generator, device=labels.device)
        return super().spared(labels) | spared_on_background(labels, self.tail, uniform)


@method("loss", "gol")
class GOLLoss(DropLoss):
    """GOL; scores at test time are ``exp(-exp(-z))`` with a background column of 0.

    In training logits are kept in [-4, 10]. A linear classifier starts with weights of 0.001 and biases of -2, as in
    the repository.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        num_annotated_images: Training images with at least one annotation.
        threshold: ``lambda``, below which a class is tail (LVIS v1: 0.0011, LVIS v0.5: 0.00177).
        statistic: What is compared: the share of images, or the number of instances.
        loss_weight: Factor of the loss (repository: 1.0).
        seed: Seed of the draws, which also depend on the iteration and the process.
    """

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        num_annotated_images: int | None = None,
        threshold: float = 0.0011,
        statistic: Literal["image_frequency", "instance_count"] = "image_frequency",
        loss_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        counts = image_counts, instance_counts, num_annotated_images
        super().__init__(num_classes, *counts, threshold, statistic, loss_weight, seed=seed)

    def terms(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every RoI and class, ``(N, K)`` float32."""
        return gumbel_terms(logits, target)

    def probability(self, logits: Tensor) -> Tensor:
        """Return ``exp(-exp(-z))``."""
        return gumbel_probability(logits)

    def init_classifier(self, classifier: Any) -> None:
        """Set the first weights of the classifier."""
        start_low(classifier)


def start_low(classifier: nn.Module) -> None:
    """Set every bias of a classifier to -2 and, if it is linear, every weight to 0.001: GOL's initialisation."""
    if isinstance(getattr(classifier, "bias", None), Tensor):
        nn.init.constant_(classifier.bias, -2.0)  # type: ignore[arg-type]
    if is_plain_linear(classifier):
        nn.init.constant_(classifier.weight, 0.001)  # type: ignore[arg-type]

"""Adaptive class suppression loss, ACSL (CVPR 2021): classification loss, and classifier on stored features.

The equations are in :mod:`ltpipe.methods.acsl.functions`. Both need the groups of rare, common and frequent classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from ltpipe.methods.acsl.functions import acsl_rows, acsl_weights, class_groups, drawn_rows
from ltpipe.methods.calibration import LossCalibrator
from ltpipe.methods.seeded_draws import SeededDraws
from ltpipe.methods.sigmoid_loss import SigmoidLoss
from ltpipe.registry import method

SHARES = (0.01, 0.1)
"""Parts of the background RoIs from which rare and common classes learn, as in the repository."""


@method("loss", "acsl")
class ACSLLoss(SigmoidLoss, SeededDraws):
    """ACSL; scores at test time are ``sigmoid(z)``, background last, without objectness.

    Label weights and the average factor are ignored, as in the repository. It draws RoIs among those of one process:
    with fewer than 100 background RoIs rare classes learn from none, with fewer than 10 common ones neither.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        class_frequency: ``r``, ``c`` or ``f`` per class; None: by image counts.
        limits: Most images of a rare and of a common class, e.g. ``[10, 100]``; None: the groups of the data set.
        score_threshold: Score from which a class is suppressed by foreground RoIs of others (repository: 0.7).
        prior_prob: Initial score of every channel; the head sets the classifier's bias by it (repository: 0.01).
        seed: Seed of the draws, which also depend on the iteration and the process.

    Raises:
        UserError: The limits do not ascend.
    """

    groups: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        class_frequency: Sequence[str] | None = None,
        limits: Sequence[int] | None = None,
        score_threshold: float = 0.7,
        prior_prob: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        self.score_threshold, self.prior_prob = score_threshold, prior_prob
        self.register_buffer("groups", class_groups(image_counts, class_frequency, limits), persistent=False)
        self.start_draws(seed)

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI."""
        drawn = self.background_rows(labels)
        weights = acsl_weights(logits.detach().sigmoid(), labels, self.groups, self.score_threshold, drawn)
        return acsl_rows(logits, labels, weights)

    def background_rows(self, labels: Tensor) -> Tensor:
        """Return the background RoIs from which rare and common classes learn, ``(2, N)`` bool."""
        noise = torch.rand(2, len(labels), generator=self.generator(labels.device), device=labels.device)
        background = labels == self.num_classes
        return torch.stack([drawn_rows(background, share, row) for share, row in zip(SHARES, noise, strict=True)])


@method("calibrator", "acsl")
class ACSL(LossCalibrator):
    """A new classifier, trained with ACSL on the frozen detector: the published second stage on stored features.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        class_frequency: ``r``, ``c`` or ``f`` per class; None: by image counts.
        limits: Most images of a rare and of a common class; None: the groups of the data set.
        score_threshold: Score from which a class is suppressed by foreground RoIs of others (repository: 0.7).
        seed: Seed of the draws, which also depend on the iteration and the process.
    """

    needs_features = True

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        class_frequency: Sequence[str] | None = None,
        limits: Sequence[int] | None = None,
        score_threshold: float = 0.7,
        seed: int = 0,
    ) -> None:
        options = {
            "num_classes": num_classes,
            "image_counts": [int(count) for count in image_counts],
            "class_frequency": None if class_frequency is None else list(class_frequency),
            "limits": limits,
            "score_threshold": score_threshold,
            "seed": seed,
        }
        super().__init__(num_classes, ACSLLoss, options)

    def initialise(self, bbox_head: Any) -> None:
        """Make the new classifier, N(0, 0.01) with the bias of a first score of 0.01, as in the repository."""
        classifier = nn.Linear(bbox_head.fc_cls.in_features, self.num_classes + 1)
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.constant_(classifier.bias, bias_init_with_prob(self.loss_cls.prior_prob))
        self.head.fc_cls = classifier

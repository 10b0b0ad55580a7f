"""What losses share that score every class by itself: averages, label weights, scores at test time, accuracy."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmdet.models.losses import accuracy
from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor, nn

Reduction = Literal["none", "mean", "sum"]


def one_hot(labels: Tensor, num_classes: int, channels: int) -> Tensor:
    """Return targets ``(N, channels)`` float32 of labels ``(N,)``, background ``num_classes``.

    With as many channels as classes the background has a row of zeros.
    """
    rows = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return rows.scatter_(1, labels[:, None], 1.0)[:, :channels]


class SigmoidLoss(nn.Module):
    """A loss with a score per class; a method says what a RoI's loss is, in :meth:`rows`.

    Attributes:
        background: What the classifier has besides its ``K`` classes: ``none``; a channel of the background as a
            ``class`` of its own; or one that is ``unused``.
        weighted: Whether label weights and the average factor count. Most repositories ignore them: the loss is the sum
            over RoIs divided by their number.
        test_with_obj: Whether scores at test time are multiplied by one minus the background's.
        num_classes: Foreground classes ``K``.
        loss_weight: Factor of the loss.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    softmax_scores = False
    background: ClassVar[Literal["none", "class", "unused"]] = "class"
    weighted: ClassVar[bool] = False
    test_with_obj: bool = False
    num_classes: int
    loss_weight: float

    def __init__(self, num_classes: int, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.num_classes, self.loss_weight = num_classes, loss_weight

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI, ``(N,)`` float32, without label weights; in training, update the state.

        Args:
            logits: ``(N, C)`` float32.
            labels: ``(N,)`` int64, background ``K``.
            weight: ``(N,)`` float label weights, or None for 1.
        """
        raise NotImplementedError

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: Reduction | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss, computed in float32. In training all processes must call a loss with a state together.

        Args:
            cls_score: ``(N, C)`` float logits.
            label: ``(N,)`` int64, background ``K``.
            weight: ``(N,)`` float label weights, or None for 1; see ``weighted``.
            avg_factor: Divisor of the sum over RoIs, or None for ``N``; see ``weighted``.
            reduction_override: ``none`` (a value per RoI), ``mean`` (default) or ``sum``.
            **kwargs: Not used.
        """
        if not self.weighted:
            weight = avg_factor = None
        with torch.autocast(cls_score.device.type, enabled=False):
            rows = self.rows(cls_score.float(), label, weight)
            return self.loss_weight * self.reduced(rows, weight, reduction_override or "mean", avg_factor)

    def reduced(self, rows: Tensor, weight: Tensor | None, reduction: Reduction, avg_factor: float | None) -> Tensor:
        """Return the losses ``(N,)`` of RoIs weighted and, unless the reduction is ``none``, as one number."""
        if reduction == "mean" and avg_factor is None:
            avg_factor = max(len(rows), 1)
        loss: Tensor = weight_reduce_loss(rows, weight, reduction, avg_factor)
        return loss

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the channels of the classifier, ``K`` or ``K + 1``."""
        return num_classes + (self.background != "none")

    def probability(self, logits: Tensor) -> Tensor:
        """Return the score of every logit."""
        return logits.sigmoid()

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(N, K + 1)`` of logits ``(N, C)``, background last; 0 for it if it has no channel."""
        scores = self.probability(cls_score)
        if self.background == "none":
            return F.pad(scores, (0, 1))
        if not self.test_with_obj:
            return scores
        return torch.cat([scores[:, :-1] * (1 - scores[:, -1:]), scores[:, -1:]], dim=1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return ``acc_classes`` over the foreground and, if it has a channel, ``acc_objectness``; in percent."""
        foreground = labels < self.num_classes
        classes = cls_score[foreground][:, : self.num_classes]
        found = {"acc_classes": accuracy(classes, labels[foreground])}
        if self.background == "class":
            right = (self.probability(cls_score[:, -1]) < 0.5) == foreground
            found["acc_objectness"] = 100 * right.float().sum() / max(len(labels), 1)
        return found

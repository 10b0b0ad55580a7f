"""Seesaw loss (arXiv 2008.10032), mmdet's implementation with counts shared by all processes.

With ``n_j`` the RoIs of class ``j`` seen so far and ``s = softmax(z)``, for a foreground RoI of class ``i``:
``L_cls = -log softmax(z + log S_i)[i]``, ``S_ij = min(1, n_j / n_i)^p * max(1, s_j / max(s_i, eps))^q``, plus a two-way
cross-entropy between object and background over all RoIs. Acts as ``loss_cls``; the classifier, usually a normalised
linear layer, has ``K + 2`` channels. Needs nothing from the data: it counts sampled RoIs while it trains.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmdet.models.losses import SeesawLoss
from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor

from ltpipe.methods.reductions import all_reduce_sum
from ltpipe.registry import method


def seesaw_class_loss(
    cls_score: Tensor,
    labels: Tensor,
    label_weights: Tensor | None,
    cum_samples: Tensor,
    num_classes: int,
    p: float,
    q: float,
    eps: float,
    reduction: str = "mean",
    avg_factor: float | None = None,
) -> Tensor:
    """Return the loss between the classes, ``-log softmax(z + log S_i)[i]``, as mmdet's ``seesaw_ce_loss``.

    mmdet makes the ``(K, K)`` matrix of all mitigation factors in every step; here only the rows of the labels are
    computed, in logarithms, in which the own class's entries are 0 by themselves.

    Args:
        cls_score: ``(P, K)`` float32 logits of the foreground RoIs.
        labels: ``(P,)`` int64 in ``0..K-1``.
        label_weights: ``(P,)`` float32, or None for 1.
        cum_samples: ``(K,)`` float32, ``n``.
        num_classes: ``K``.
        p: Exponent of the mitigation factor; not positive: off.
        q: Exponent of the compensation factor; not positive: off.
        eps: Smallest divisor of the compensation factor.
        reduction: ``none``, ``mean`` or ``sum``.
        avg_factor: Divisor of the sum; None: ``P``.

    Returns:
        Scalar, or ``(P,)`` without reduction.
    """
    own = labels[:, None]
    shifted = cls_score
    if p > 0:
        logs = cum_samples.clamp(min=1).log()
        shifted = shifted + p * (logs - logs[own]).clamp_(max=0)
    if q > 0:
        logs = cls_score.detach().log_softmax(dim=1)
        shifted = shifted + q * (logs - logs.gather(1, own).exp().clamp(min=eps).log()).clamp_(min=0)
    losses = F.cross_entropy(shifted, labels, reduction="none")
    loss: Tensor = weight_reduce_loss(losses, label_weights, reduction, avg_factor)
    return loss


@method("loss", "seesaw")
class SyncedSeesawLoss(SeesawLoss):
    """Seesaw loss; scores at test time are ``softmax(z) * P(object)``, background last.

    Args:
        num_classes: Foreground classes ``K``.
        p: Exponent of the mitigation factor; 0 switches it off (paper: 0.8).
        q: Exponent of the compensation factor; 0 switches it off (paper: 2.0).
        eps: Smallest divisor of the compensation factor (mmdet: 0.01).
        loss_weight: Factor of both terms (mmdet: 1.0).
        sync: Count the RoIs of all processes. mmdet counts per process and stores the first one's counts.
    """

    softmax_scores = False
    restarts_per_phase = True
    class_rows: ClassVar[dict[str, int]] = {"cum_samples": 0}

    def __init__(
        self,
        num_classes: int,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 0.01,
        loss_weight: float = 1.0,
        sync: bool = True,
    ) -> None:
        super().__init__(p=p, q=q, num_classes=num_classes, eps=eps, loss_weight=loss_weight)
        self.cls_criterion = seesaw_class_loss
        self.sync = sync

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Count the labels (in training mode) and return ``loss_cls_objectness`` and ``loss_cls_classes``.

        In training all processes must call it together.

        Args:
            cls_score: ``(N, K + 2)`` float: class logits, then object and background.
            labels: ``(N,)`` int64, background ``K``.
            label_weights: ``(N,)`` float, or None for 1.
            avg_factor: Divisor of both sums; None: ``N`` for the objectness, the foreground RoIs for the classes.
            reduction_override: ``none``, ``mean`` or ``sum``.
            **kwargs: Not used.
        """
        counted = self.cum_samples.clone()
        if self.sync and self.training:
            local = torch.bincount(labels, minlength=self.num_classes + 1).to(self.cum_samples.dtype)
            # mmdet adds this process's labels itself.
            self.cum_samples += all_reduce_sum(local) - local
        if len(labels) == 0:
            zero = cls_score.float().sum() * 0
            return {"loss_cls_objectness": zero, "loss_cls_classes": zero}
        with torch.autocast(cls_score.device.type, enabled=False):
            losses: dict[str, Tensor] = super().forward(
                cls_score.float(), labels, label_weights, avg_factor, reduction_override
            )
        if not self.training:
            self.cum_samples.copy_(counted)
        return losses

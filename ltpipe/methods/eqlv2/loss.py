"""Equalization loss v2, EQLv2 (arXiv 2012.08548).

Per class ``j`` the accumulated positive and negative gradients ``P_j``, ``Q_j`` and their ratio ``R_j = P_j / Q_j``
steer the weights of the sigmoid cross-entropy: ``neg_j = 1 / (1 + exp(-gamma (R_j - mu)))``,
``pos_j = 1 + alpha (1 - neg_j)``, ``L = (1 / N) sum_n sum_j w_nj BCE(z_nj, y_nj)``, ``w = pos y + neg (1 - y)``.
Afterwards, with ``p = sigmoid(z)``, ``P_j += sum_n w_nj y_nj (1 - p_nj)`` and ``Q_j += sum_n w_nj (1 - y_nj) p_nj``,
summed over processes. Acts as ``loss_cls`` with ``K + 1`` sigmoid channels; the last one, whose positives are the
background RoIs, always weighs 1 and is not collected. Needs nothing from the data.

mmdet's ``EQLV2Loss`` has the same loss values but scores by softmax, without the prior bias, and collects per process.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.methods.reductions import all_reduce_sum
from ltpipe.methods.sigmoid_loss import SigmoidLoss
from ltpipe.registry import method

START_RATIO = 100.0


def eqlv2_weights(ratio: Tensor, gamma: float, mu: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the weights of positives and negatives per channel.

    Args:
        ratio: ``(K,)`` float32, ``R``.
        gamma: Steepness of the mapping.
        mu: Ratio at which negatives weigh one half.
        alpha: Gain of positives.

    Returns:
        ``(K + 1,)`` and ``(K + 1,)`` float32; 1 for the last channel.
    """
    negative = torch.sigmoid(gamma * (ratio - mu))
    positive = 1 + alpha * (1 - negative)
    return F.pad(positive, (0, 1), value=1.0), F.pad(negative, (0, 1), value=1.0)


def eqlv2_rows(logits: Tensor, labels: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return each RoI's loss and the weighted gradients of its channels.

    Args:
        logits: ``(N, K + 1)`` float32.
        labels: ``(N,)`` int64, background ``K``.
        positive: ``(K + 1,)`` float32 weights of positives.
        negative: ``(K + 1,)`` float32 weights of negatives.

    Returns:
        Losses ``(N,)`` and absolute gradients ``(N, K + 1)`` (without graph), both float32.
    """
    own = labels[:, None]
    target = torch.zeros_like(logits, requires_grad=False).scatter_(1, own, 1.0)
    weight = negative.expand_as(logits).scatter(1, own, positive[own])
    losses = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum(dim=1)
    gradients = logits.detach().sigmoid().sub_(target).abs_().mul_(weight)
    return losses, gradients


@method("loss", "eqlv2")
class EQLv2Loss(SigmoidLoss):
    """EQLv2; scores at test time are ``sigmoid(z_j) * (1 - sigmoid(z_background))``, background last.

    Args:
        num_classes: Foreground classes ``K``.
        gamma: Steepness of the mapping from ratio to weight (repository: 12).
        mu: Ratio at which negatives weigh one half (repository: 0.8).
        alpha: Gain of positives (repository: 4.0).
        loss_weight: Factor of the loss (repository: 1.0).
        test_with_obj: Multiply the class scores by one minus the background score (repository: yes).
        prior_prob: Initial score of every channel; the head sets the classifier's bias by it (repository: 0.001).
    """

    weighted = True  # the repository ignores label weights and average factor; with weights of 1 the values agree
    restarts_per_phase = True
    class_rows: ClassVar[dict[str, int]] = {"pos_grad": 0, "neg_grad": 0, "pos_neg": 0}

    pos_grad: Tensor
    neg_grad: Tensor
    pos_neg: Tensor

    def __init__(
        self,
        num_classes: int,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        loss_weight: float = 1.0,
        test_with_obj: bool = True,
        prior_prob: float = 0.001,
    ) -> None:
        super().__init__(num_classes, loss_weight)
        self.prior_prob = prior_prob
        self.gamma, self.mu, self.alpha, self.test_with_obj = gamma, mu, alpha, test_with_obj
        # The names are those of the repository's checkpoints.
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.full((num_classes,), START_RATIO))

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI; in training mode, collect the gradients of the batch."""
        weights = eqlv2_weights(self.pos_neg, self.gamma, self.mu, self.alpha)
        rows, gradients = eqlv2_rows(logits, labels, *weights)
        if self.training:
            self._collect(gradients if weight is None else gradients.mul_(weight[:, None]), labels)
        return rows

    @torch.no_grad()
    def _collect(self, gradients: Tensor, labels: Tensor) -> None:
        """Add the absolute gradients ``(N, K + 1)`` of a batch, which are used up, to the accumulators."""
        own = labels[:, None]
        positive = gradients.new_zeros(self.num_classes + 1).index_add_(0, labels, gradients.gather(1, own).squeeze(1))
        negative = gradients.scatter_(1, own, 0.0).sum(dim=0)
        positive, negative = all_reduce_sum(torch.stack([positive, negative])[:, :-1])
        self.pos_grad += positive
        self.neg_grad += negative
        self.pos_neg.copy_(self.pos_grad / (self.neg_grad + 1e-10))

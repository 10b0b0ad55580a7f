"""Foreground classification balance loss, FCBL, of BACL (TMM 2023, Tianhao-Qi/BACL); without its feature hallucination.

Over training, ``M_ij`` sums how much of the score of foreground RoIs of class ``i`` goes to class ``j`` (softmax over
the classes), ``g_i`` counts these RoIs, and ``c_ij = M_ij / max(g_i, 1)``. A foreground RoI of class ``i`` has
``z_j + alpha ln(max(c_ij, 0.001) / max(c_ji, 0.001))`` in place of ``z_j``: classes that take more from ``i`` than they
give must be beaten by a margin. ``L = (1 / N) sum_n sum_j w_nj BCE`` over ``K + 1`` sigmoid channels, the background a
class of its own. After the first steps, foreground RoIs only push down classes that score at least as much as their
own, or 0.7. Acts as ``loss_cls``. Needs nothing from the data.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.reductions import all_reduce_sum
from ltpipe.methods.sigmoid_loss import SigmoidLoss, one_hot
from ltpipe.registry import method

SMALLEST_CONFUSION = 1e-3
ALWAYS_SUPPRESSED = 0.7
"""Score from which a foreground RoI suppresses any class, as in the repository."""


def confusion_margins(confusion: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Return what is added to the logits, ``(N, K + 1)`` float32; nothing for background RoIs and the background.

    Args:
        confusion: ``(K, K)`` float32, ``c``.
        labels: ``(N,)`` int64, background ``K``.
        alpha: ``alpha``.
    """
    num_classes = len(confusion)
    logs = confusion.clamp(min=SMALLEST_CONFUSION).log()
    own = labels.clamp(max=num_classes - 1)
    margins = alpha * (logs[own] - logs.t()[own])
    return F.pad(margins * (labels < num_classes)[:, None], (0, 1))


def suppressed_classes(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which channels a RoI trains, ``(N, K + 1)`` bool.

    Args:
        scores: ``(N, K + 1)`` float32, those of test time, background last.
        labels: ``(N,)`` int64, background ``K``.
    """
    background = scores.shape[1] - 1
    rivals = (scores >= scores.gather(1, labels[:, None])) | (scores >= ALWAYS_SUPPRESSED)
    rivals[:, background] = True
    return rivals | (labels == background)[:, None]


@method("loss", "bacl")
class BACLLoss(SigmoidLoss):
    """FCBL; scores at test time are ``sigmoid(z_c) * (1 - sigmoid(z_background))``, background last.

    Label weights and the average factor are ignored, as in the repository.

    Args:
        num_classes: Foreground classes ``K``.
        alpha: Factor of the margins (repository: 0.85 in its configs, 1 in its code).
        plain_steps: Training steps in which all classes are suppressed (repository: those of the first epoch).
        loss_weight: Factor of the loss (repository: 1.0).

    Raises:
        UserError: A negative number of steps.
    """

    test_with_obj = True
    restarts_per_phase = True
    class_rows: ClassVar[dict[str, int]] = {"cm_numerator": 0, "num_gt": 0}
    class_columns: ClassVar[dict[str, int]] = {"cm_numerator": 1}

    cm_numerator: Tensor
    num_gt: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.85,
        plain_steps: int = 0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(num_classes, loss_weight)
        if plain_steps < 0:
            raise UserError("bad option of bacl", where="plain_steps", got=plain_steps, allowed="0 steps or more")
        self.alpha, self.plain_steps = alpha, plain_steps
        # The names are those of the repository's checkpoints.
        self.register_buffer("cm_numerator", torch.zeros(num_classes, num_classes))
        self.register_buffer("num_gt", torch.zeros(num_classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI; in training mode, all processes together, collect the confusion."""
        margins = confusion_margins(self.cm_numerator / self.num_gt.clamp(min=1)[:, None], labels, self.alpha)
        scores = self.get_activation(logits.detach())
        trained = suppressed_classes(scores, labels) | (self.steps < self.plain_steps)
        target = one_hot(labels, self.num_classes, self.num_classes + 1)
        losses = F.binary_cross_entropy_with_logits(logits + margins, target, reduction="none") * trained
        if self.training:
            self._collect(logits.detach()[:, :-1].softmax(dim=1), labels)
        return losses.sum(dim=1)

    @torch.no_grad()
    def _collect(self, shares: Tensor, labels: Tensor) -> None:
        """Add the shares ``(N, K)`` of a batch; also without foreground, since every process must join in."""
        found = shares.new_zeros(self.num_classes + 1, self.num_classes + 1)
        found.index_add_(0, labels, F.pad(shares, (0, 1), value=1.0))
        found = all_reduce_sum(found)
        self.cm_numerator += found[:-1, :-1]
        self.num_gt += found[:-1, -1]
        self.steps += 1

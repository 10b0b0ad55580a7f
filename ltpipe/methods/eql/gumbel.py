"""Cross entropy of Gumbel scores (ECCV 2022, kostas1515/GOL, ``GumbelCE``), GOL without sparing the tail.

With ``eta(z) = exp(-exp(-z))``, ``L = min(20, sum_n w_n sum_j BCE(eta(z_nj), y_nj) / A)``, ``w`` the label weights and
``A`` the average factor. Acts as ``loss_cls`` with ``K + 1`` channels, the background a class of its own. Needs nothing
from the data.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ltpipe.methods.eql.drop import start_low
from ltpipe.methods.eql.functions import gumbel_probability, gumbel_terms
from ltpipe.methods.sigmoid_loss import Reduction, SigmoidLoss, one_hot
from ltpipe.registry import method

CAP = 20.0


@method("loss", "gumbel")
class GumbelLoss(SigmoidLoss):
    """Gumbel cross entropy; scores at test time are ``exp(-exp(-z))`` of every channel, without objectness.

    In training logits are kept in [-4, 10] and the loss below 20, beyond which it has no gradient. A linear classifier
    starts with weights of 0.001 and biases of -2, as in the repository.

    Args:
        num_classes: Foreground classes ``K``.
        loss_weight: Factor of the loss, after its cap (repository: 1.0).
    """

    weighted = True

    def __init__(self, num_classes: int, loss_weight: float = 1.0) -> None:
        super().__init__(num_classes, loss_weight)

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI."""
        return gumbel_terms(logits, one_hot(labels, self.num_classes, self.num_classes + 1)).sum(dim=1)

    def reduced(self, rows: Tensor, weight: Tensor | None, reduction: Reduction, avg_factor: float | None) -> Tensor:
        """As usual, but at most 20 as one number; without an average factor the mean over RoIs and channels."""
        if reduction == "mean" and avg_factor is None:
            avg_factor = max(len(rows), 1) * (self.num_classes + 1)
        loss = super().reduced(rows, weight, reduction, avg_factor)
        return loss if reduction == "none" else loss.clamp(max=CAP)

    def probability(self, logits: Tensor) -> Tensor:
        """Return ``exp(-exp(-z))``."""
        return gumbel_probability(logits)

    def init_classifier(self, classifier: Any) -> None:
        """Set the first weights of the classifier."""
        start_low(classifier)

"""Effective class-margin loss, ECM (ECCV 2022, janghyuncho/ECM-Loss).

With counts ``n_c``, that of the background being ``rho`` times the sum over the classes, ``S`` the sum of all and
``m_c = S - n_c``: margins ``k_c = ln(n_c / m_c) / 4``, weights ``w_c = (m_c / n_c) ln(1 + n_c / m_c)`` and
``L = (1 / N) sum_n sum_c w_c BCE(2 z_nc + k_c, y_nc)`` over ``K + 1`` sigmoid channels, the background a class of its
own. Acts as ``loss_cls``. Needs training counts: the table of the repository is named after images but holds instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.sigmoid_loss import SigmoidLoss, one_hot
from ltpipe.registry import method


def margins_and_weights(counts: Tensor, background_ratio: float) -> tuple[Tensor, Tensor]:
    """Return margins ``k`` and weights ``w``, both ``(K + 1,)`` float64, the background's last.

    In float32 the weights would be wrong by up to a tenth, and 0 for the rarest classes of large data sets.

    Args:
        counts: ``(K,)`` training counts; classes without any count as 1.
        background_ratio: ``rho``.
    """
    known = counts.double().clamp(min=1)
    own = torch.cat([known, background_ratio * known.sum(dim=0, keepdim=True)])
    rest = own.sum() - own
    return (own / rest).log() / 4, rest / own * (own / rest).log1p()


@method("loss", "ecm")
class ECMLoss(SigmoidLoss):
    """ECM; scores at test time are ``sigmoid(z_c) * (1 - sigmoid(z_background))``, background last.

    Margin and factor 2 act in training only. Label weights and the average factor are ignored, as in the repository.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        statistic: What is counted. The published models are trained with instances.
        background_ratio: ``rho``, background RoIs per foreground RoI (repository: 6.3313, measured on Mask R-CNN).
        loss_weight: Factor of the loss (repository: 1.0).

    Raises:
        UserError: The ratio is not positive.
    """

    test_with_obj = True

    margin: Tensor
    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        statistic: Literal["instance", "image"] = "instance",
        background_ratio: float = 6.3313,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(num_classes, loss_weight)
        if not background_ratio > 0:
            raise UserError(
                "ecm needs background", where="model.loss.background_ratio", got=background_ratio, allowed="above 0"
            )
        counts = torch.tensor(instance_counts if statistic == "instance" else image_counts)
        margin, class_weight = margins_and_weights(counts, background_ratio)
        self.register_buffer("margin", margin.float(), persistent=False)
        self.register_buffer("class_weight", class_weight.float(), persistent=False)

    def rows(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Return the loss of every RoI."""
        target = one_hot(labels, self.num_classes, self.num_classes + 1)
        shifted = 2 * logits + self.margin
        return F.binary_cross_entropy_with_logits(shifted, target, self.class_weight, reduction="none").sum(dim=1)

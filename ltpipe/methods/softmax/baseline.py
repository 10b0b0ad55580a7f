"""The baseline: a linear classifier with softmax cross-entropy over ``K`` classes and background.

``L = (1 / A) sum_n u_n (-log softmax(z_n)[y_n])``, ``u`` the label weights, ``A`` the average factor. Both components
are mmdet's and torch's own, registered so that experiments can name them. Needs nothing from the data.
"""

from __future__ import annotations

from typing import ClassVar

from mmdet.models.losses import CrossEntropyLoss
from torch import nn

from ltpipe.registry import method


@method("loss", "cross_entropy")
class SoftmaxLoss(CrossEntropyLoss):
    """Softmax cross-entropy, ``K + 1`` channels with the background last.

    Args:
        loss_weight: Factor of the loss (mmdet: 1.0).
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(use_sigmoid=False, loss_weight=loss_weight)


@method("classifier", "linear")
class LinearClassifier(nn.Linear):
    """``z = W x + b``, torch's linear layer.

    Args:
        in_features: Width of the RoI features.
        out_features: Channels the loss asks for.
    """

    class_rows: ClassVar[dict[str, int]] = {"weight": 0, "bias": 0}

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

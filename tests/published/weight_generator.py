"""Generator of classifier rows for new classes (experimental).

Paper: Learning to Segment the Tail (CVPR 2020, arXiv 2004.00900). The released training code does not call it; the
formulas are those of the compiled ``AttentionBasedGenerator`` left in the repository JoyHuYY1412/LST_LVIS:

    a   = A mean_i(f_i) + a0
    att = mean_i softmax_k(g <norm(Q f_i + q0), norm(key_k)>) . norm(W)
    w*  = a + B att + b0

Gives one row of a cosine classifier from the features of a class in one support image and the rows of the old classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.registry import MODELS


def attended_row(queries: Tensor, keys: Tensor, base_weight: Tensor, scale: Tensor) -> Tensor:
    """Return the mean attention of the queries over the old classes' rows.

    Args:
        queries: ``(P, d)`` float.
        keys: ``(K, d)`` float, one per old class.
        base_weight: ``(K, d)`` float, the old classes' classifier rows.
        scale: ``(1,)`` float sharpness of the attention.

    Returns:
        ``(1, d)`` float.
    """
    similarity = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T
    attention = (scale * similarity).softmax(dim=-1)
    return (attention @ F.normalize(base_weight, dim=-1)).mean(dim=0, keepdim=True)


@MODELS.register_module()
class MetaWeightGenerator(nn.Module):
    """Predicts the classifier row of a new class from support features.

    Args:
        features: Width ``d`` of features and rows.
        num_classes: Number ``K`` of old classes.
        scale: Initial sharpness of the attention (10 in the recovered module).
    """

    def __init__(self, features: int, num_classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.average, self.attended, self.query = (nn.Linear(features, features) for _ in range(3))
        self.keys = nn.Parameter(torch.randn(num_classes, features) * math.sqrt(2 / features))
        self.scale = nn.Parameter(torch.tensor([float(scale)]))
        for layer in (self.average, self.attended, self.query):
            with torch.no_grad():
                layer.weight.normal_(std=0.001).add_(torch.eye(features))
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, base_weight: Tensor) -> Tensor:
        """Return the new row ``(1, d)``.

        Args:
            features: ``(P, d)`` float of unit length, up to 30 foreground RoIs of the class in one support image.
            base_weight: ``(K, d)`` float rows of the old classes; receives a gradient.

        Raises:
            UserError: There is no support feature.
        """
        if not len(features):
            raise UserError(
                "a class row cannot be generated from a support image without RoIs",
                got="0 features",
                fix="choose support images that contain the class",
            )
        attention = attended_row(self.query(features), self.keys, base_weight, self.scale)
        return self.average(features.mean(dim=0, keepdim=True)) + self.attended(attention)

"""Classifiers that change the logits of another classifier: what calibrators put around a detector's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor, nn

from ltpipe.methods.box_layers import rectifies
from ltpipe.registry import MODELS


class WrappedClassifier(nn.Module):
    """A classifier around another one, which it reads the same feature as.

    Args:
        in_features: Width of the features.
        out_features: Outputs C, those of the foreground classes first.
        classifier: ``cls_predictor_cfg`` of the classifier inside.
    """

    class_rows: ClassVar[dict[str, int]] = {"classifier.weight": 0, "classifier.bias": 0}

    def __init__(self, in_features: int, out_features: int, classifier: Mapping[str, Any]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        sizes = {"in_features": in_features, "out_features": out_features}
        self.classifier: Any = MMDET_MODELS.build({**classifier, **sizes})
        self.rectify_input = rectifies(self.classifier)

    @property
    def weight(self) -> Tensor:
        """Rows ``(C, d)`` of the classifier inside, which some mask heads read."""
        rows: Tensor = self.classifier.weight
        return rows


@MODELS.register_module()
class AffineClassifier(WrappedClassifier):
    """``scale * z + shift`` of another classifier's logits ``z``; see :class:`WrappedClassifier` for the arguments.

    Attributes:
        scale: ``(C,)`` float32.
        shift: ``(C,)`` float32.
    """

    class_rows: ClassVar[dict[str, int]] = {**WrappedClassifier.class_rows, "scale": 0, "shift": 0}

    scale: Tensor
    shift: Tensor

    def __init__(self, in_features: int, out_features: int, classifier: Mapping[str, Any]) -> None:
        super().__init__(in_features, out_features, classifier)
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("shift", torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, C)`` of features ``(N, d)``."""
        logits: Tensor = self.classifier(x)
        return logits * self.scale + self.shift

"""Calibrators that shift logits, on a bare classification loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor

from ltpipe.methods.adjusted_scores import OffsetCalibrator
from ltpipe.methods.eql.loss import EQLLoss


def scores_of(calibrator: OffsetCalibrator, logits: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Scores ``(N, K + 1)`` that a calibrator gives the logits of a detector with this loss."""
    classes = calibrator.num_classes
    own: Any = CrossEntropyLoss() if loss == "cross_entropy" else EQLLoss(classes, [1] * classes, [1] * classes, 1)
    calibrator.initialise(SimpleNamespace(loss_cls=own))
    return calibrator.scores(calibrator(logits))

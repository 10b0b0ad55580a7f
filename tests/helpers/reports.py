"""Checkpoints with made-up numbers, for reports."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ltpipe.metrics.table import per_class_table, summarize
from ltpipe.metrics.tensors import TensorInfo, Tensors
from ltpipe.report.build import Evaluation

K = 12
CLASSES = pd.DataFrame(
    {
        "category_id": np.arange(K),
        "name": [f"thing <{i}> & co" for i in range(K)],
        "image_count": 2000 // (1 + np.arange(K)) ** 2,
        "instance_count": 4000 // (1 + np.arange(K)) ** 2,
        "frequency": list("ffffccccrrrr"),
        "phase": np.arange(K) // 4,
    }
)


def evaluation(experiment: str, checkpoint: str, level: float, iou_type: str = "segm", known: int = K) -> Evaluation:
    """Return a checkpoint whose AP is ``level`` for every class but the last, which has no ground truth."""
    precision, recall = np.full((10, 101, known, 4), level), np.full((10, known, 4), level)
    if known == K:
        precision[:, :, -1], recall[:, -1] = -1, -1
    counts = {"detections": 12345, "evaluated": 9, "gt": 4}
    info = TensorInfo(iou_type, "lvis", 300, "hotcoco 1.3.0", counts, 0.02 if iou_type == "boundary" else None)
    tensors = Tensors(precision, recall, np.arange(known), info)
    phase = {"base": 0, "phase1": 1, "phase2": 2}.get(checkpoint)
    return Evaluation(
        experiment, checkpoint, summarize(tensors, CLASSES, phase=phase), per_class_table(tensors, CLASSES)
    )

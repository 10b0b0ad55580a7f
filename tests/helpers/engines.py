"""Evaluation by any engine: ltpipe's own, vernier, or hotcoco, a third code base that only tests ask."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import hotcoco

from ltpipe.metrics.contract import Selection, select
from ltpipe.metrics.evaluation import evaluate, run_engine
from ltpipe.metrics.tensors import Tensors
from ltpipe.metrics.vernier_engine import PrecisionRecall, detection_columns, ground_truth_records, mask_records


def evaluate_by(engine: str, gt: Any, predictions: Any, iou_type: Any, **options: Any) -> Tensors:
    """Evaluate as :func:`~ltpipe.metrics.evaluation.evaluate` does, with the engine of that name."""
    if engine != "hotcoco":
        return evaluate(gt, predictions, iou_type, engine=engine, **options)
    version = f"hotcoco {importlib.metadata.version('hotcoco')}"
    return run_engine(select(gt, predictions, iou_type, **options), run_hotcoco, version)


def run_hotcoco(selection: Selection) -> PrecisionRecall:
    """Evaluate with hotcoco, which knows no boundaries."""
    images, anns, categories = ground_truth_records(selection)
    gt = hotcoco.COCO({"images": images, "annotations": anns, "categories": categories})
    everything = slice(0, len(selection.dets))
    found = gt.load_res(detection_columns(selection, everything), segmentation=mask_records(selection, everything))
    federated = selection.protocol == "lvis"
    if federated:
        found = found.cap_detections_per_image(None)
    result = hotcoco.COCOeval(gt, found, selection.iou_type, lvis_style=federated)
    result.params.max_dets = [selection.max_detections]
    result.evaluate()
    result.accumulate()
    assert result.eval is not None
    return result.eval["precision"][..., 0], result.eval["recall"][..., 0]

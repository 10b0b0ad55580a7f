"""Detections in the JSON format of results that COCO and LVIS servers and tools exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ltpipe.metrics.predictions import Predictions
from ltpipe.run.files import atomic_path

ROWS_PER_BLOCK = 20000


def write_results(predictions: Predictions, path: str | Path, *, boxes: bool = True, masks: bool = True) -> None:
    """Write predictions as a results file, block by block, atomically.

    For a mask evaluation write masks only: the common evaluators take the box area as the size of a mask when
    a detection also carries a box.

    Args:
        predictions: What to write.
        path: The JSON file.
        boxes: Write the boxes, where there are any.
        masks: Write the masks, where there are any.
    """
    boxes, masks = boxes and predictions.boxes is not None, masks and predictions.masks is not None
    assert boxes or masks, "nothing to write"
    encoder = msgspec.json.Encoder()
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(b"[")
        for start in range(0, len(predictions), ROWS_PER_BLOCK):
            rows = np.arange(start, min(start + ROWS_PER_BLOCK, len(predictions)))
            text = encoder.encode(_records(predictions, rows, boxes, masks))[1:-1]
            handle.write((b",\n" if start else b"") + text)
        handle.write(b"]\n")


def _records(predictions: Predictions, rows: np.ndarray, boxes: bool, masks: bool) -> list[dict[str, Any]]:
    scores = predictions.scores[rows].astype(np.float64).tolist()
    ids = zip(predictions.image_ids[rows].tolist(), predictions.category_ids[rows].tolist(), scores, strict=True)
    records: list[dict[str, Any]] = [{"image_id": i, "category_id": c, "score": s} for i, c, s in ids]
    if boxes and predictions.boxes is not None:
        for record, box in zip(records, predictions.boxes[rows].astype(np.float64).tolist(), strict=True):
            record["bbox"] = box
    if masks and predictions.masks is not None:
        sizes = predictions.masks.sizes[rows].tolist()
        for record, size, counts in zip(records, sizes, predictions.masks.counts(rows), strict=True):
            record["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
    return records

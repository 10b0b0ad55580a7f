"""Results in the JSON format that COCO and LVIS servers and tools exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ltpipe.errors import UserError
from ltpipe.metrics.predictions import MaskColumn, Predictions
from ltpipe.run.files import atomic_path

ROWS_PER_BLOCK = 20000


class _Mask(msgspec.Struct):
    size: tuple[int, int]
    counts: str


class _Detection(msgspec.Struct):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] | None = None
    segmentation: _Mask | None = None


def read_results(path: str | Path) -> Predictions:
    """Read a results file: a list of detections with ``bbox`` (xywh), ``segmentation`` (compressed RLE), or both.

    Returns:
        Checked predictions with float64 scores and boxes.

    Raises:
        UserError: Not such a list, a field is missing or of the wrong type, or something is not finite or malformed.
    """
    allowed = 'a JSON list of {"image_id", "category_id", "score", "bbox": [x, y, w, h] or "segmentation": RLE}'
    try:
        rows = msgspec.json.decode(Path(path).read_bytes(), type=list[_Detection])
    except OSError as error:
        raise UserError("cannot read the results", where=path, got=error.strerror) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError("not a valid results file", where=path, got=error, allowed=allowed) from error
    for name in ("bbox", "segmentation"):
        missing = [index for index, row in enumerate(rows) if getattr(row, name) is None]
        if 0 < len(missing) < len(rows):
            raise UserError(f"a detection has no {name} but others have", where=f"{path}: detection {missing[0]}")
    boxes = masks = None
    if not rows or rows[0].bbox is not None:
        boxes = np.array([row.bbox for row in rows], np.float64).reshape(-1, 4)
    if rows and rows[0].segmentation is not None:
        found = [row.segmentation for row in rows if row.segmentation is not None]
        texts = [mask.counts.encode("utf-8") for mask in found]
        masks = MaskColumn.from_list(texts, _sizes([mask.size for mask in found], path))
    return Predictions(
        np.array([row.image_id for row in rows], np.int64),
        np.array([row.category_id for row in rows], np.int64),
        np.array([row.score for row in rows], np.float64),
        boxes,
        masks,
        str(path),
    ).checked()


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


def _sizes(sizes: list[tuple[int, int]], path: str | Path) -> np.ndarray:
    values = np.array(sizes, np.int64).reshape(-1, 2)
    bad = np.flatnonzero(((values < 1) | (values > np.iinfo(np.int32).max)).any(axis=1))
    if len(bad):
        raise UserError("an impossible mask size", where=f"{path}: detection {bad[0]}", got=sizes[bad[0]])
    return values.astype(np.int32)

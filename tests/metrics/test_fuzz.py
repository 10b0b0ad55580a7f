"""Tiny random data sets on which every engine must say the same, corner by corner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltpipe.metrics.predictions import MaskColumn, Predictions
from ltpipe.metrics.tensors import differing_categories
from tests.helpers.engines import evaluate_by
from tests.helpers.ground_truth import read_ground_truth

SIZE = 200
SIDES = (8, 16, 32, 64, 72, 96, 128)  # several of 32 * 32 and 96 * 96 pixels exactly


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes xywh of few places and sides, so that overlaps and areas repeat."""
    sides = rng.choice(SIDES, (count, 2))
    same = rng.random(count) < 0.5
    sides[same, 1] = sides[same, 0]
    return np.concatenate([np.minimum(rng.integers(0, 4, (count, 2)) * 16, SIZE - sides), sides], axis=1).astype(float)


def polygon(box: list[float]) -> list[list[float]]:
    """Return the outline of a box."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def document(rng: np.random.Generator, federated: bool) -> dict[str, Any]:
    """Draw images with lists that name categories more than once and leave others out."""
    images: list[dict[str, Any]] = []
    for number in range(1, 5):
        image: dict[str, Any] = {"id": 7 * number, "file_name": f"{number}.jpg", "height": SIZE, "width": SIZE}
        if federated:
            image["neg_category_ids"] = rng.choice([2, 3, 5, 9], rng.integers(0, 3), replace=False).tolist()
            image["not_exhaustive_category_ids"] = rng.choice([2, 3, 5, 9], rng.integers(0, 3), replace=False).tolist()
        images.append(image)
    anns = [
        {
            "id": number,
            "image_id": int(rng.choice([7, 14, 21])),
            "category_id": int(rng.choice([2, 3, 5])),
            "bbox": box,
            "area": box[2] * box[3] * float(rng.choice([1, 0.5])),
            "iscrowd": int(not federated and rng.random() < 0.2),
            "segmentation": polygon(box),
        }
        for number, box in enumerate(boxes(rng, int(rng.integers(1, 30))).tolist(), 1)
    ]
    for ann in anns:
        if ann["iscrowd"]:
            rle = coco_mask.frPyObjects(ann["segmentation"], SIZE, SIZE)[0]
            ann["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    categories = [{"id": i, "name": str(i), "frequency": "f"} for i in (9, 2, 5, 3)]
    return {"images": images, "annotations": anns, "categories": categories}


def detections(rng: np.random.Generator, count: int) -> Predictions:
    """Draw detections with many equal scores."""
    found = boxes(rng, count)
    masks = [coco_mask.frPyObjects(polygon(box), SIZE, SIZE)[0]["counts"] for box in found.tolist()]
    return Predictions(
        rng.choice([7, 14, 21, 28], count),
        rng.choice([2, 3, 5, 9], count),
        np.round(rng.random(count), 1) - 0.2,
        found,
        MaskColumn.from_list(masks, np.full((count, 2), SIZE, np.int32)),
    )


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("protocol", ["lvis", "coco"])
def test_engines_agree(protocol: Any, iou_type: Any, tmp_path: Path) -> None:
    """Areas on the borders of the object sizes, ties of scores and overlaps, caps, crowds, contradictory lists."""
    rng = np.random.default_rng(0)
    differing, seen = [], set()
    for case in range(40):
        path = tmp_path / "gt.json"
        path.write_text(json.dumps(document(rng, protocol == "lvis")), encoding="utf-8")
        gt, found = read_ground_truth(path), detections(rng, int(rng.integers(0, 150)))
        cap = int(rng.choice([3, 10, 300]))
        ours, *others = (
            evaluate_by(engine, gt, found, iou_type, protocol=protocol, max_detections=cap)
            for engine in ("ltpipe", "hotcoco", "vernier")
        )
        differing += [case for other in others if differing_categories(ours, other)]
        seen |= set(np.unique(ours.recall).tolist())
    assert differing == [] and len(seen) > 8

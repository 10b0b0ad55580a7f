"""Synthetic detections made from real annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

GROUND_TRUTH = Path(__file__).parents[1] / "data" / "lvis_val_100.json"
Detections = list[dict[str, Any]]


def detections_near(
    document: dict[str, Any], masks: dict[int, np.ndarray], iou_type: str, rng: np.random.Generator
) -> Detections:
    """Return detections around the annotations: right, misclassified, surplus, and of categories nobody verified."""
    lists = {image["id"]: image for image in document["images"]}
    known = [item["id"] for item in document["categories"]]
    found = []
    for ann in document["annotations"]:
        image = lists[ann["image_id"]]
        others = [*image["neg_category_ids"], *image["not_exhaustive_category_ids"], *rng.choice(known, 2).tolist()]
        others = [category for category in others if category in set(known)]
        for _ in range(int(rng.integers(0, 4))):
            right = rng.random() < 0.6
            category = ann["category_id"] if right else int(rng.choice(others))
            item = {"image_id": ann["image_id"], "category_id": category, "score": round(float(rng.random()), 4)}
            shift = rng.normal(0, 0.15, 2) * ann["bbox"][2:]
            if iou_type == "bbox":
                scale = rng.lognormal(0, 0.2, 2)
                box = [*(np.array(ann["bbox"][:2]) + shift), *(np.array(ann["bbox"][2:]) * scale)]
                item["bbox"] = [round(float(value), 2) for value in box]
            else:
                item["segmentation"] = encode(np.roll(masks[ann["id"]], shift.round().astype(int)[::-1], (0, 1)))
            found.append(item)
    return found


def make_empty(item: dict[str, Any], document: dict[str, Any]) -> None:
    """Make a detection cover nothing."""
    if "bbox" in item:
        item["bbox"] = [*item["bbox"][:3], 0.0]
    else:
        item["segmentation"] = encode(np.zeros(item["segmentation"]["size"], np.uint8))


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the compressed run-length text of a bitmap, as JSON holds it."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def boundary_evaluator(official: Any) -> Any:
    """Return the official LVIS evaluator with Boundary IoU, band 0.02, in the place of mask IoU."""

    class BoundaryEval(official):  # type: ignore[misc]
        def compute_iou(self, image: int, category: int) -> Any:
            ious = super().compute_iou(image, category)
            if len(ious) == 0:
                return ious
            gt, dt = self._get_gt_dt(image, category)
            dt = [dt[i] for i in np.argsort([-item["score"] for item in dt], kind="mergesort")]
            bands = [[band(item["segmentation"]) for item in items] for items in (dt, gt)]
            return np.minimum(ious, coco_mask.iou(*bands, [0] * len(gt)))

    return BoundaryEval


def band(rle: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a mask within 0.02 diagonals of its contour; the image's border is a contour as well."""
    mask = coco_mask.decode(rle)
    width = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    inner = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    found: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask - inner))
    return found

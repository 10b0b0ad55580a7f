"""Real ground truth, synthetic detections made from it, and the official evaluators."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.helpers.detection_cases import GROUND_TRUTH, Detections, boundary_evaluator, detections_near, make_empty

Tensors = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def gt_document() -> dict[str, Any]:
    """The 100 real images with the classes they show, and some more (the full list only slows the official code)."""
    document = json.loads(GROUND_TRUTH.read_text(encoding="utf-8"))
    present = {ann["category_id"] for ann in document["annotations"]}
    kept = present | set(range(1, 1230, 60))
    document["categories"] = [item for item in document["categories"] if item["id"] in kept]
    for image in document["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [category for category in image[key] if category in kept]
    return document


@pytest.fixture(scope="session")
def gt_path(gt_document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document as a file."""
    path = tmp_path_factory.mktemp("gt") / "gt.json"
    path.write_text(json.dumps(gt_document), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def gt_masks(gt_document: dict[str, Any]) -> dict[int, np.ndarray]:
    """Bitmap of every annotation by id."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in gt_document["images"]}
    return {
        ann["id"]: coco_mask.decode(
            coco_mask.merge(coco_mask.frPyObjects(ann["segmentation"], *sizes[ann["image_id"]]))
        )
        for ann in gt_document["annotations"]
    }


@pytest.fixture(scope="session")
def make_detections(
    gt_document: dict[str, Any], gt_masks: dict[int, np.ndarray]
) -> Callable[[str, str, int], Detections]:
    """Return a function of (kind, IoU type, seed): detections with the difficulty that the kind names.

    All kinds hold misplaced, misclassified and surplus detections, detections of absent, not exhaustive and unverified
    categories, in shuffled order.
    """

    def make(kind: str, iou_type: str, seed: int) -> Detections:
        rng = np.random.default_rng(seed)
        found = detections_near(gt_document, gt_masks, iou_type, rng)
        if kind == "ties":
            for item in found:
                item["score"] = round(item["score"], 1)
        if kind == "crowded":
            found += [item | {"score": round(float(rng.random()), 2)} for item in found * 3]
            favourite = found[0]["image_id"]
            same = [item for item in found if item["image_id"] == favourite]
            found += [same[i] | {"score": 0.5} for i in rng.integers(len(same), size=700)]
        if kind == "zero_area":
            for item in found[::7]:
                make_empty(item, gt_document)
            found += [item | {"score": 0.99} for item in found[::7]] * 3
        return [found[i] for i in rng.permutation(len(found))]

    return make


@pytest.fixture(scope="session")
def official_lvis_evaluation() -> Iterator[Callable[..., Any]]:
    """The reference: ``LVISEval`` of the lvis package, run, with the one alias it needs from an old numpy."""
    level = logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float", float, raising=False)
        lvis = pytest.importorskip("lvis")
        logging.getLogger("lvis").setLevel(logging.ERROR)

        def run(gt: Path, detections: Detections, iou_type: str, max_dets: int = 300) -> Any:
            ground_truth = lvis.LVIS(str(gt))
            results = lvis.LVISResults(ground_truth, copy.deepcopy(detections), max_dets)
            kind = boundary_evaluator(lvis.LVISEval) if iou_type == "boundary" else lvis.LVISEval
            evaluation = kind(ground_truth, results, "segm" if iou_type == "boundary" else iou_type)
            evaluation.run()
            return evaluation

        yield run
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def official_lvis(official_lvis_evaluation: Callable[..., Any]) -> Callable[..., Tensors]:
    """Precision and recall of the reference."""

    def run(*arguments: Any) -> Tensors:
        evaluation = official_lvis_evaluation(*arguments)
        return evaluation.eval["precision"], evaluation.eval["recall"]

    return run

"""What the contract in front of the engines refuses, and what it makes of ground truth."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltpipe.data.id_rows import row_of
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.metrics.contract import select
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import MaskColumn, Predictions
from tests.helpers.detection_cases import encode
from tests.helpers.ground_truth import read_ground_truth

REAL = Path(__file__).parents[1] / "data" / "lvis_val_100.json"
SIZE = (20, 30)
SQUARE = np.zeros(SIZE, np.uint8)
SQUARE[2:12, 3:13] = 1


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Two images, three categories."""
    images = [
        {
            "id": 5,
            "file_name": "5.jpg",
            "height": 20,
            "width": 30,
            "neg_category_ids": [9],
            "not_exhaustive_category_ids": [],
        },
        {
            "id": 3,
            "file_name": "3.jpg",
            "height": 40,
            "width": 30,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [7],
        },
    ]
    square = {"bbox": [3, 2, 10, 10], "area": 100, "segmentation": [[3, 2, 13, 2, 13, 12, 3, 12]]}
    anns = [square | {"id": i, "image_id": image, "category_id": 7} for i, image in enumerate((5, 3))]
    categories = [{"id": number, "name": f"n{number}", "frequency": "f"} for number in (9, 7, 8)]
    return {"images": images, "annotations": anns, "categories": categories}


def ground_truth(document: dict[str, Any], folder: Path) -> AnnotationStore:
    """Pass a document through a file."""
    (folder / "gt.json").write_text(json.dumps(document), encoding="utf-8")
    return read_ground_truth(folder / "gt.json")


def detections(**change: Any) -> Predictions:
    """Return two good detections with some columns replaced."""
    text = encode(SQUARE)["counts"].encode()
    columns: dict[str, Any] = {
        "image_ids": np.array([5, 5]),
        "category_ids": np.array([7, 9]),
        "scores": np.array([0.5, 0.25]),
        "boxes": np.array([[3.0, 2.0, 10.0, 10.0]] * 2),
        "masks": MaskColumn.from_list([text, text], np.array([SIZE, SIZE], np.int32)),
        "source": "found.arrow",
    }
    return Predictions(**(columns | change))


def masks(text: bytes, size: tuple[int, int] = SIZE) -> MaskColumn:
    """Return a good mask and another one."""
    return MaskColumn.from_list([encode(SQUARE)["counts"].encode(), text], np.array([SIZE, size], np.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([0.5, np.nan])}, "a score is not finite"),
        ({"scores": np.array([0.5])}, "columns of different lengths"),
        ({"boxes": np.array([[3.0, 2.0, 10.0, 10.0], [0, 0, np.inf, 1]])}, "a box is not finite"),
        ({"image_ids": np.array([5, 6])}, "image id is not in the ground truth"),
        ({"category_ids": np.array([7, 10])}, "category id is not in the ground truth"),
        ({"masks": masks(encode(SQUARE)["counts"].encode()[:-1])}, "a mask "),
        ({"masks": masks(b"\xff" * 5)}, "a mask has an illegal character"),
        ({"masks": masks(b"")}, "a mask is empty"),
        ({"masks": masks(encode(SQUARE[:-1])["counts"].encode())}, "a mask does not cover the image"),
        ({"masks": masks(encode(SQUARE.T)["counts"].encode(), SIZE[::-1])}, "a mask has another size than its image"),
        ({"masks": None}, "no masks to evaluate"),
    ],
)
def test_bad_detections_are_refused(
    change: dict[str, Any], message: str, document: dict[str, Any], tmp_path: Path
) -> None:
    """Before an engine sees them, naming the file."""
    gt = ground_truth(document, tmp_path)
    assert select(gt, detections(), "segm").counts["evaluated"] == 2
    with pytest.raises(UserError, match=message) as caught:
        select(gt, detections(**change), "segm")
    assert "found.arrow" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_type": "keypoints"}, "unknown IoU type"),
        ({"protocol": "voc"}, "unknown evaluation protocol"),
        ({"engine": "official"}, "unknown evaluation engine"),
        ({"max_detections": 0}, "impossible cap"),
        ({"category_ids": [7, 11]}, "category to evaluate is not in the ground truth"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], message: str, document: dict[str, Any], tmp_path: Path
) -> None:
    """With the accepted values."""
    with pytest.raises(UserError, match=message):
        evaluate(ground_truth(document, tmp_path), detections(), **({"iou_type": "bbox"} | options))


def test_lvis_protocol_needs_federated_lists(document: dict[str, Any], tmp_path: Path) -> None:
    """Without them the default is the COCO protocol."""
    plain = copy.deepcopy(document)
    for image in plain["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    gt = ground_truth(plain, tmp_path)
    assert evaluate(gt, detections(), "bbox").info.protocol == "coco"
    with pytest.raises(UserError, match="LVIS protocol needs"):
        evaluate(gt, detections(), "bbox", protocol="lvis")


def test_row_of() -> None:
    """Places in an unsorted list, -1 for strangers."""
    known = np.array([9, 2, 5])
    assert row_of(np.array([5, 9, 1, 2, 7, 10]), known).tolist() == [2, 0, -1, 1, -1, -1]
    assert row_of(np.array([5]), np.zeros(0, np.int64)).tolist() == [-1]
    assert row_of(np.zeros(0, np.int64), known).tolist() == []

"""Small annotation files for the store tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LVIS_100 = Path(__file__).parents[1] / "data" / "lvis_val_100.json"

# A 6 x 5 (height x width) mask of the last four rows of column 1, in both spellings of RLE.
PLAIN_RLE = {"size": [6, 5], "counts": [8, 4, 18]}
COMPRESSED_RLE = {"size": [6, 5], "counts": "84b0"}


def lvis_content() -> dict[str, Any]:
    """Return a valid federated file: 3 images (the middle one empty), 3 categories, 4 annotations out of order."""
    square = [1.0, 1.0, 4.5, 1.0, 4.5, 3.25, 1.0, 3.25]
    shifted = [value + 0.001 for value in square]
    images = [
        {"id": 70, "height": 6, "width": 5, "file_name": "b.png"},
        {"id": 40, "height": 6, "width": 5, "file_name": "a.png"},
        {"id": 90, "height": 8, "width": 9, "file_name": "c.png"},
    ]
    for image, negative, not_exhaustive in zip(images, ([5], [], [2, 9]), ([2], [], []), strict=True):
        image |= {"neg_category_ids": negative, "not_exhaustive_category_ids": not_exhaustive}
    annotations = [
        {"id": 8, "image_id": 90, "category_id": 5, "bbox": [1, 1, 3.5, 2.25], "segmentation": [square]},
        {
            "id": 3,
            "image_id": 70,
            "category_id": 2,
            "bbox": [0.1, 0, 1, 4],
            "segmentation": [shifted],
        },
        {"id": 4, "image_id": 90, "category_id": 5, "bbox": [1, 1, 3, 2], "segmentation": [square, [0, 0, 2, 0, 2, 2]]},
        {"id": 9, "image_id": 70, "category_id": 9, "bbox": [1, 2, 3, 0.5], "segmentation": [square[:6]]},
    ]
    for annotation in annotations:
        annotation["area"] = 7.875 + annotation["id"]
    categories = [{"id": 9, "name": "sock"}, {"id": 2, "name": "Ünit"}, {"id": 5, "name": "cup"}]
    for category, frequency in zip(categories, "rfc", strict=True):
        category["frequency"] = frequency
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_content() -> dict[str, Any]:
    """Return the same file in COCO format, with a crowd region, both kinds of RLE and an ignored annotation."""
    content = lvis_content()
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in content["categories"]:
        del category["frequency"]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    box = {"bbox": [1, 2, 1, 4], "area": 4}
    content["annotations"] += [
        {"id": 20, "image_id": 70, "category_id": 2, "iscrowd": 1, "segmentation": PLAIN_RLE, **box},
        {"id": 21, "image_id": 40, "category_id": 2, "iscrowd": 0, "segmentation": COMPRESSED_RLE, **box},
        {"id": 22, "image_id": 40, "category_id": 5, "ignore": 1, "segmentation": [[0, 0, 3, 0, 3, 3]], **box},
    ]
    return content


def write_content(folder: Path, content: dict[str, Any] | str) -> Path:
    """Write an annotation file, or its text, and return its path."""
    path = folder / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path

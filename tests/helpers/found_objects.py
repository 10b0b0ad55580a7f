"""Ground truth made of what a detector has found."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from ltpipe.metrics.predictions import Predictions


def annotate_with(detections: list[Predictions], content: dict[str, Any], federated: list[int]) -> None:
    """Make some detections the ground truth, so that untrained detectors have an AP, and turn the category list.

    Args:
        detections: Detections of the images.
        content: Annotations, changed in place.
        federated: Category ids of which images say what is verified; none: of no category.
    """
    content["categories"] = content["categories"][::-1]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    found: list[dict[str, Any]] = []
    for part in detections:
        assert part.boxes is not None
        for row in np.argsort(-part.scores, kind="stable")[::3]:
            x, y, w, h = (round(float(v)) for v in part.boxes[row])
            image, category = int(part.image_ids[row]), int(part.category_ids[row])
            width, height = sizes[image]
            w, h = min(w, width - x), min(h, height - y)
            if w < 4 or h < 4:
                continue
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            found.append(dict(id=len(found), image_id=image, category_id=category, bbox=[x, y, w, h], area=w * h,
                              segmentation=[corners], iscrowd=int(len(found) % 11 == 10)))  # fmt: skip
    content["annotations"] = found
    present = defaultdict(set)
    for annotation in found:
        present[annotation["image_id"]].add(annotation["category_id"])
    for image in content["images"] if federated else []:
        absent = [i for i in federated if i not in present[image["id"]]]
        image["neg_category_ids"] = absent[::2]
        image["not_exhaustive_category_ids"] = sorted(present[image["id"]])[:1] + absent[1::4]

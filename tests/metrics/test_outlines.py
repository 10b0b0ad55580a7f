"""Masks of annotations and their overlaps: ltpipe's loops against pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ltpipe.data.id_rows import row_of
from ltpipe.data.rle import rle_runs
from ltpipe.metrics import kernels
from ltpipe.metrics.mask_outlines import Masks, annotation_masks
from ltpipe.metrics.predictions import join_text
from tests.helpers.ground_truth import read_ground_truth

HEIGHT, WIDTH = 47, 61


def segmentations(count: int) -> list[Any]:
    """Polygons, some partly outside of the image, with equal points, or of several parts; RLE of both kinds."""
    rng = np.random.default_rng(0)
    found: list[Any] = []
    for index in range(count):
        corners = rng.integers(3, 12)
        xy = (rng.random((corners, 2)) * 1.4 - 0.2) * [WIDTH, HEIGHT]
        xy = np.round(xy, index % 4)
        if index % 5 == 0:
            xy[1:3] = xy[0]
        polygon = xy.reshape(-1).tolist()
        if index % 7 == 0:
            found.append([polygon, (xy * 0.5 + 3).reshape(-1).tolist()])
        elif index % 7 in (1, 2):
            rle = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)[0]
            counts: Any = rle["counts"].decode() if index % 7 == 1 else rle_runs(rle["counts"]).tolist()
            found.append({"size": [HEIGHT, WIDTH], "counts": counts})
        else:
            found.append([polygon])
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of such annotations, in one image."""
    anns = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 5, "segmentation": segmentation}
        for i, segmentation in enumerate(segmentations(900), 1)
    ]
    image = {"id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "a.jpg"}
    document = {"images": [image], "annotations": anns, "categories": [{"id": 1, "name": "a", "frequency": "r"}]}
    path = tmp_path_factory.mktemp("gt") / "gt.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def expected_rle(segmentation: Any) -> dict[str, Any]:
    """Return what pycocotools makes of an annotation."""
    objects = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH) if "counts" not in segmentation else segmentation
    if isinstance(objects, dict):
        return coco_mask.frPyObjects(objects, *objects["size"]) if isinstance(objects["counts"], list) else objects
    return coco_mask.merge(objects)


def test_masks_of_annotations(path: Path) -> None:
    """Every run of every mask, in any order of rows."""
    gt = read_ground_truth(path)
    rows = np.random.default_rng(1).permutation(900)
    masks = annotation_masks(gt, rows)
    singles = np.diff(gt.outlines(rows)[0]) > 0
    assert 400 < singles.sum() < 700
    known = segmentations(900)
    for place, row in enumerate(rows.tolist()):
        rle = expected_rle(known[row])
        start = masks.pointer[place]
        ends = masks.ends[start : start + masks.counts[place]]
        np.testing.assert_array_equal(ends, np.cumsum(rle_runs(rle["counts"])))
        assert masks.areas[place] == coco_mask.area(rle)


@pytest.mark.parametrize("crowd", [False, True])
def test_overlaps_equal_pycocotools(crowd: bool, path: Path) -> None:
    """Bit for bit, where they reach the lowest threshold; nothing that does not is taken for more."""
    gt = read_ground_truth(path)
    masks = annotation_masks(gt, np.arange(300))
    rles = [expected_rle(segmentation) for segmentation in segmentations(900)]
    dets = [*rles[300:420], *rles[:60]]
    texts = [rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"] for rle in dets]
    pointer, text = join_text(texts)
    one_pair = np.array([0, len(dets)]), np.array([0, 300]), np.array([0, 300 * len(dets)])
    ious, flags = np.zeros(300 * len(dets)), np.full(300, crowd)
    areas = coco_mask.area(dets).astype(np.float64)
    kernels.mask_overlaps(*one_pair, text, pointer, areas, *Masks(*masks), flags, np.array([HEIGHT]), 0.5, ious)
    expected = coco_mask.iou(dets, rles[:300], [crowd] * 300)
    reach = expected >= 0.5
    found = ious.reshape(expected.shape)
    assert 100 < reach.sum() < expected.size / 2
    np.testing.assert_array_equal(found[reach], expected[reach])
    assert (found[~reach] <= expected[~reach]).all()

    boxes = np.random.default_rng(2).random((2, 40, 4)) * [WIDTH, HEIGHT, WIDTH, -HEIGHT / 4] + [0, 0, 0, HEIGHT]
    ious = np.zeros(1600)
    one_pair = np.array([0, 40]), np.array([0, 40]), np.array([0, 1600])
    kernels.box_overlaps(*one_pair, *boxes, flags[:40], ious)
    np.testing.assert_array_equal(ious.reshape(40, 40), coco_mask.iou(*boxes, [crowd] * 40))


def test_rows_of_ids() -> None:
    """Dense and sparse ids, with a table and without, give the same places."""
    rng = np.random.default_rng(3)
    for scale in (1, 10**12):
        known = (rng.permutation(50) - 20) * scale
        ids = (rng.integers(-40, 60, 1000)) * scale
        expected = [known.tolist().index(value) if value in known else -1 for value in ids.tolist()]
        np.testing.assert_array_equal(row_of(ids, known), expected)

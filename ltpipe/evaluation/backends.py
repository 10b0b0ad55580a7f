"""The evaluation engines: they turn a selection into precision and recall tensors and decide nothing.

``ltpipe``, the default, is the package's own: it needs no record for each detection. ``hotcoco`` and ``vernier`` are
independent code bases that must give the same bits. ``vernier`` also knows Boundary IoU (arXiv 2103.16562): the smaller
of the IoU of two masks and the IoU of what lies within a band along their contours.
"""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hotcoco
import msgspec
import numpy as np
import vernier.instance
from numpy.typing import NDArray

from ltpipe import __version__
from ltpipe.cores import cores
from ltpipe.errors import UserError, unknown_name
from ltpipe.evaluation.contract import IouType, Selection
from ltpipe.evaluation.native import evaluate_columns

DEFAULT_ENGINES: dict[IouType, str] = {"bbox": "ltpipe", "segm": "ltpipe", "boundary": "vernier"}
BOUNDARY_RATIO = 0.02
"""Width of the band along a contour as a part of the image's diagonal: the value of the paper for COCO and LVIS."""
DETECTIONS_PER_PART = 1_000_000
Records = list[dict[str, Any]]
PrecisionRecall = tuple[NDArray[np.float64], NDArray[np.float64]]


def run_engine(name: str, selection: Selection) -> PrecisionRecall:
    """Return precision ``(T, R, K, A) float64`` and recall ``(T, K, A) float64``; -1 where there is no ground truth.

    Raises:
        UserError: There is no such engine, or it cannot do this.
    """
    if name not in ENGINES:
        raise unknown_name("evaluation engine", name, ENGINES)
    if selection.iou_type == "boundary" and name != DEFAULT_ENGINES["boundary"]:
        raise UserError("the engine knows no boundaries", got=name, allowed=DEFAULT_ENGINES["boundary"])
    with _collector_paused():
        return ENGINES[name](selection)


def engine_version(name: str) -> str:
    """Return the engine's name and version for the record, e.g. ``hotcoco 1.3.0``."""
    return f"{name} {__version__ if name == 'ltpipe' else importlib.metadata.version(name)}"


def run_hotcoco(selection: Selection) -> PrecisionRecall:
    """Evaluate with hotcoco."""
    images, anns, categories = _ground_truth_records(selection)
    gt = hotcoco.COCO({"images": images, "annotations": anns, "categories": categories})
    everything = slice(0, len(selection.dets))
    found = gt.load_res(_detection_columns(selection, everything), segmentation=_mask_records(selection, everything))
    federated = selection.protocol == "lvis"
    if federated:
        found = found.cap_detections_per_image(None)
    result = hotcoco.COCOeval(gt, found, selection.iou_type, lvis_style=federated)
    result.params.max_dets = [selection.max_detections]
    result.evaluate()
    result.accumulate()
    assert result.eval is not None
    return result.eval["precision"][..., 0], result.eval["recall"][..., 0]


def run_vernier(selection: Selection) -> PrecisionRecall:
    """Evaluate with vernier in its strict mode, some categories at a time: it holds everything in memory."""
    parts = [_run_vernier(part) for part in selection.by_category(DETECTIONS_PER_PART)]
    precision, recall = zip(*parts, strict=True)
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def _run_vernier(selection: Selection) -> PrecisionRecall:
    images, anns, categories = _ground_truth_records(selection)
    document = msgspec.json.encode(
        {"images": images, "annotations": anns, "categories": categories, "info": {}, "licenses": []}
    )
    kinds = vernier.instance.CocoDataset
    read = kinds.from_lvis_json if selection.protocol == "lvis" else kinds.from_json
    options = {"dilation_ratio": BOUNDARY_RATIO} if selection.iou_type == "boundary" else {}
    grid = getattr(vernier.instance, f"evaluate_{selection.iou_type}_grid")(
        read(document),
        list(_vernier_detections(selection)),
        parity_mode="strict",
        max_dets_per_image=selection.max_detections,
        use_cats=True,
        dt_area="bbox" if selection.iou_type == "bbox" else "mask",
        num_threads=cores(),
        **options,
    )
    result = grid.accumulate([selection.max_detections])
    return result.precision[..., 0], result.recall[..., 0]


ENGINES: dict[str, Callable[[Selection], PrecisionRecall]] = {
    "ltpipe": evaluate_columns,
    "hotcoco": run_hotcoco,
    "vernier": run_vernier,
}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Stop Python's cycle collector: it would walk again and again over millions of records that hold no cycle."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _ground_truth_records(selection: Selection) -> tuple[Records, Records, Records]:
    """Return the records of images, annotations and categories."""
    evaluated = _evaluated_ids(selection)
    images = [_image_record(selection, row, part, evaluated) for row, part, _ in selection.by_image()]
    anns = [record for _, part, _ in selection.by_image() for record in _annotation_records(selection, part)]
    return images, anns, _category_records(selection)


def _image_record(selection: Selection, row: int, ann_part: slice, evaluated: set[int]) -> dict[str, Any]:
    """Describe one image; its federated lists are reduced to what makes a difference.

    A category that is annotated in the image cannot also be absent. A not exhaustive category without annotations
    only turns every detection into an ignored one, the same as not judging the category there at all.
    """
    gt = selection.gt
    height, width = gt.image_sizes[row].tolist()
    record: dict[str, Any] = {"id": int(gt.image_ids[row]), "height": height, "width": width}
    if selection.protocol == "lvis":
        present = set(gt.category_ids[gt.ann_category[selection.anns[ann_part]]].tolist())
        partial = set(gt.not_exhaustive_categories(row).tolist())
        absent = set(gt.negative_categories(row).tolist())
        record["neg_category_ids"] = sorted((absent & evaluated) - present - partial)
        record["not_exhaustive_category_ids"] = sorted(partial & present)
    return record


def _annotation_records(selection: Selection, part: slice) -> list[dict[str, Any]]:
    """Describe the annotations of one image; ids count from 1 because some evaluators take 0 for "no match"."""
    gt, rows = selection.gt, selection.anns[part]
    columns = {
        "id": range(part.start + 1, part.stop + 1),
        "image_id": gt.image_ids[gt.ann_image[rows]].tolist(),
        "category_id": gt.category_ids[gt.ann_category[rows]].tolist(),
        "bbox": gt.ann_bbox[rows].tolist(),
        "area": gt.ann_area[rows].tolist(),
        "iscrowd": gt.ann_iscrowd[rows].astype(int).tolist(),
    }
    if selection.iou_type != "bbox":
        columns["segmentation"] = [gt.segmentation(row) for row in rows.tolist()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _evaluated_ids(selection: Selection) -> set[int]:
    return set(selection.gt.category_ids[selection.categories].tolist())


def _category_records(selection: Selection) -> list[dict[str, Any]]:
    ids = sorted(_evaluated_ids(selection))
    # Groups by frequency are formed from the tensors later; engines only insist on the key.
    return [{"id": category, "name": str(category), "frequency": "f"} for category in ids]


def _detection_columns(selection: Selection, dets: slice) -> NDArray[np.float64]:
    """Return ``(n, 7)`` rows ``image, x, y, w, h, score, category``.

    Engines size a detection by its box. With masks the box is only that size: as wide as the mask has pixels, one high.
    """
    predictions, rows = selection.predictions, selection.dets[dets]
    columns = np.zeros((len(rows), 7))
    columns[:, 0] = predictions.image_ids[rows]
    if selection.iou_type != "bbox":
        columns[:, 3], columns[:, 4] = selection.areas[dets], 1.0
    elif predictions.boxes is not None:
        columns[:, 1:5] = predictions.boxes[rows]
    columns[:, 5] = predictions.scores[rows]
    columns[:, 6] = predictions.category_ids[rows]
    return columns


def _mask_records(selection: Selection, dets: slice) -> list[Any] | None:
    """Return the masks of some detections; None for boxes."""
    if selection.iou_type == "bbox":
        return None
    masks, rows = selection.predictions.masks, selection.dets[dets]
    if masks is None:
        return []
    heights, widths = masks.sizes[rows].T.tolist()
    shared: dict[tuple[int, int], list[int]] = {}
    sizes = [shared.setdefault(size, list(size)) for size in zip(heights, widths, strict=True)]
    return [{"size": size, "counts": counts} for size, counts in zip(sizes, masks.counts(rows), strict=True)]


def _vernier_detections(selection: Selection) -> Iterator[dict[str, Any]]:
    """Yield the detections of each image as the arrays vernier takes; the boxes of masks are not read."""
    for row, _, dets in selection.by_image():
        columns = _detection_columns(selection, dets)
        record = {
            "image_id": int(selection.gt.image_ids[row]),
            "boxes": np.ascontiguousarray(columns[:, 1:5]),
            "scores": columns[:, 5].copy(),
            "labels": columns[:, 6].astype(np.int64),
        }
        masks = _mask_records(selection, dets)
        if masks is not None:
            record["rles"] = [mask | {"size": tuple(mask["size"])} for mask in masks]
        yield record

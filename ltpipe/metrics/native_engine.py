"""ltpipe's own evaluation engine: columns in, tensors out, no record per detection.

It follows ``lvis`` 0.5.3 and ``pycocotools`` 2.0 bit by bit; :mod:`~ltpipe.metrics.kernels` says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.metrics import kernels
from ltpipe.metrics.contract import Selection
from ltpipe.metrics.mask_outlines import annotation_masks
from ltpipe.metrics.tensors import AREA_LIMITS, AREAS, IOU_THRESHOLDS, RECALL_THRESHOLDS
from ltpipe.run.cores import cores

DETECTIONS_PER_PART = 50_000
EVERY_THRESHOLD = np.uint16(2 ** len(IOU_THRESHOLDS) - 1)
Ints = NDArray[np.int64]
Bits = NDArray[np.uint16]


class Columns(NamedTuple):
    """A selection as columns; images and categories are places in ``selection.images`` and ``selection.categories``.

    Attributes:
        det_image: ``(D,)`` ascending.
        det_category: ``(D,)``.
        ann_image: ``(G,)`` ascending.
        ann_category: ``(G,)``.
        by_category: ``(D,)`` order of the detections by category and descending score, equal ones as they are.
        by_image: ``(D,)`` the same within each image.
    """

    det_image: Ints
    det_category: Ints
    ann_image: Ints
    ann_category: Ints
    by_category: Ints
    by_image: Ints


class Pairs(NamedTuple):
    """The images and categories of one part that have both detections and annotations.

    Attributes:
        dets: ``(d,)`` places of the detections in the selection, by pair and descending score.
        anns: ``(g,)`` places of the annotations, by pair.
        images: ``(P,)`` image rows of the ground truth.
        det_ptr: ``(P + 1,)`` first detection of each pair.
        ann_ptr: ``(P + 1,)`` first annotation.
        iou_ptr: ``(P + 1,)`` first overlap.
    """

    dets: Ints
    anns: Ints
    images: Ints
    det_ptr: Ints
    ann_ptr: Ints
    iou_ptr: Ints


class Matches(NamedTuple):
    """What became of the detections of a selection; bit ``t`` belongs to IoU threshold ``t``.

    Attributes:
        columns: The selection as columns.
        hits: ``(A, D)`` true positives.
        misses: ``(A, D)`` false positives; neither: ignored.
        wanted: ``(A, G)`` annotations to be found.
    """

    columns: Columns
    hits: Bits
    misses: Bits
    wanted: NDArray[np.bool_]


def evaluate_columns(selection: Selection) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision ``(T, R, K, A) float64`` and recall ``(T, K, A) float64``; -1 where there is no ground truth."""
    return category_curves(match_columns(selection), selection)


def category_curves(matches: Matches, selection: Selection) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall of every category, as :func:`evaluate_columns`."""
    columns, rows = matches.columns, matches.columns.by_category
    return curves(matches, rows, columns.det_category[rows], columns.ann_category, len(selection.categories))


def match_columns(selection: Selection) -> Matches:
    """Match detections and annotations, image by image."""
    columns = sort_columns(selection)
    hits = np.zeros((len(AREAS), len(selection.dets)), np.uint16)
    misses = np.where(_ignored_unless_matched(selection, columns), np.uint16(0), EVERY_THRESHOLD)

    def match_part(part: tuple[slice, slice]) -> None:
        _match_part(selection, columns, *part, hits, misses)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(match_part, _parts(columns)))
    gt = selection.gt
    wanted = ~_outside(gt.ann_area[selection.anns]) & ~gt.ann_iscrowd[selection.anns].astype(bool)
    return Matches(columns, hits, misses, wanted)


def curves(
    matches: Matches, rows: Ints, det_group: Ints, ann_group: Ints, num_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn matches into precision and recall of groups of detections: of categories, or of pools of them.

    Args:
        matches: Detections and annotations.
        rows: ``(d,)`` detections by group and descending score.
        det_group: ``(d,)`` their groups, ascending.
        ann_group: ``(G,)`` groups of the annotations; -1: none.
        num_groups: Number of groups ``N``.

    Returns:
        Precision ``(T, R, N, A) float64`` and recall ``(T, N, A) float64``; -1 where there is nothing to be found.
    """
    pointer = np.concatenate([[0], np.cumsum(np.bincount(det_group, minlength=num_groups))])
    wanted = matches.wanted & (ann_group >= 0)
    objects = np.stack([np.bincount(ann_group[own], minlength=num_groups) for own in wanted], axis=1)
    shape = len(IOU_THRESHOLDS), num_groups, len(wanted)
    precision, recall = np.full((shape[0], len(RECALL_THRESHOLDS), *shape[1:]), -1.0), np.full(shape, -1.0)
    kernels.accumulate(
        pointer, matches.hits[:, rows], matches.misses[:, rows], objects, RECALL_THRESHOLDS, precision, recall
    )
    return precision, recall


def sort_columns(selection: Selection) -> Columns:
    """Return a selection as columns."""
    gt, found = selection.gt, selection.predictions
    image, category = (np.empty(len(ids), np.int64) for ids in (gt.image_ids, gt.category_ids))
    image[selection.images] = np.arange(len(selection.images))
    category[:] = -1
    category[selection.categories] = np.arange(len(selection.categories))
    det_image = row_of(found.image_ids[selection.dets], gt.image_ids[selection.images])
    det_category = row_of(found.category_ids[selection.dets], gt.category_ids[selection.categories])
    by_score = np.argsort(-found.scores[selection.dets], kind="stable")
    by_category = by_score[stable_order(det_category[by_score])]
    by_image = by_category[stable_order(det_image[by_category])]
    anns = image[gt.ann_image[selection.anns]], category[gt.ann_category[selection.anns]]
    return Columns(det_image, det_category, *anns, by_category, by_image)


def stable_order(places: Ints) -> Ints:
    """Return the stable order of numbers >= 0; those of 16 bits are sorted in linear time."""
    small = not len(places) or places.max() <= np.iinfo(np.uint16).max
    return np.argsort(places.astype(np.uint16) if small else places, kind="stable")


def _outside(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return ``(A, n)``: which areas do not belong to each object size."""
    return np.stack([(areas < low) | (areas > high) for low, high in AREA_LIMITS])


def _ignored_unless_matched(selection: Selection, columns: Columns) -> NDArray[np.bool_]:
    """Return ``(A, D)``: detections that are no mistakes even if nothing is there.

    They are of another size, or the image may show more objects of the category than were annotated.
    """
    ignored: NDArray[np.bool_] = _outside(selection.areas) | never_wrong(selection, columns)
    return ignored


def never_wrong(selection: Selection, columns: Columns) -> NDArray[np.bool_]:
    """Return ``(D,)``: detections where the image may show more objects of their category than were annotated."""
    if selection.protocol != "lvis":
        return np.zeros(len(selection.dets), bool)
    lists = [selection.gt.not_exhaustive_categories(row) for row in selection.images.tolist()]
    image = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
    ids = selection.gt.category_ids[selection.categories]
    category = row_of(np.concatenate([*lists, np.zeros(0, np.int64)]), ids)
    partial = (image * len(ids) + category)[category >= 0]
    return np.isin(columns.det_image * len(ids) + columns.det_category, partial)


def _parts(columns: Columns) -> Iterator[tuple[slice, slice]]:
    """Cut detections and annotations between images."""
    marks = columns.det_image[DETECTIONS_PER_PART::DETECTIONS_PER_PART]
    bounds = [np.searchsorted(ids, marks).tolist() for ids in (columns.det_image, columns.ann_image)]
    ends = len(columns.det_image), len(columns.ann_image)
    dets, anns = ([0, *bound, end] for bound, end in zip(bounds, ends, strict=True))
    for a, b, c, d in zip(dets[:-1], dets[1:], anns[:-1], anns[1:], strict=True):
        yield slice(a, b), slice(c, d)


def _match_part(selection: Selection, columns: Columns, dets: slice, anns: slice, hits: Bits, misses: Bits) -> None:
    """Match some images, and write what becomes of their detections."""
    pairs, over = _pairs(selection, columns, dets, anns)
    misses[:, over] = 0
    if not len(pairs.images):
        return
    gt, rows = selection.gt, selection.anns[pairs.anns]
    crowd = gt.ann_iscrowd[rows].astype(bool)
    ious = pair_overlaps(selection, pairs, IOU_THRESHOLDS[0])
    where = pairs.det_ptr, pairs.ann_ptr, pairs.iou_ptr
    matched, counted = (np.zeros((len(AREAS), len(pairs.dets)), np.uint16) for _ in range(2))
    kernels.match(*where, ious, _outside(gt.ann_area[rows]) | crowd, crowd, IOU_THRESHOLDS, matched, counted)
    hits[:, pairs.dets] = counted
    misses[:, pairs.dets] &= ~matched


def every_pair(selection: Selection, columns: Columns) -> Iterator[tuple[Pairs, Ints]]:
    """Yield the pairs of some images after the other, and the detections that are over the limit of their pair."""
    for part in _parts(columns):
        yield _pairs(selection, columns, *part)


def pair_overlaps(selection: Selection, pairs: Pairs, lowest: float) -> NDArray[np.float64]:
    """Return the IoUs of all pairs, ``pairs.iou_ptr`` says where; those below ``lowest`` may be 0."""
    gt, rows = selection.gt, selection.anns[pairs.anns]
    crowd = gt.ann_iscrowd[rows].astype(bool)
    ious = np.zeros(int(pairs.iou_ptr[-1]))
    where = pairs.det_ptr, pairs.ann_ptr, pairs.iou_ptr
    if selection.iou_type == "bbox":
        assert selection.predictions.boxes is not None
        boxes = selection.predictions.boxes[selection.dets[pairs.dets]].astype(np.float64)
        kernels.box_overlaps(*where, boxes, gt.ann_bbox[rows].astype(np.float64), crowd, ious)
    else:
        assert selection.predictions.masks is not None
        pointer, text = selection.predictions.masks.packed(selection.dets[pairs.dets])
        heights, areas = gt.image_sizes[pairs.images, 0].astype(np.int64), selection.areas[pairs.dets]
        masks = annotation_masks(gt, rows)
        kernels.mask_overlaps(*where, text, pointer, areas, *masks, crowd, heights, lowest, ious)
    return ious


def _pairs(selection: Selection, columns: Columns, dets: slice, anns: slice) -> tuple[Pairs, Ints]:
    """Sort a part into pairs; under the COCO protocol a pair has only so many detections, others are told apart."""
    num_categories = len(selection.categories)
    det_order = columns.by_image[dets]
    det_key = columns.det_image[det_order] * num_categories + columns.det_category[det_order]
    ann_key = columns.ann_image[anns] * num_categories + columns.ann_category[anns]
    ann_order = np.argsort(ann_key, kind="stable")
    ann_key = ann_key[ann_order]
    place = np.arange(len(det_key))
    over = place - np.searchsorted(det_key, det_key) >= selection.max_detections
    common = np.intersect1d(det_key, ann_key)
    kept_det, kept_ann = np.isin(det_key, common) & ~over, np.isin(ann_key, common)
    det_ptr, ann_ptr = (
        np.append(np.searchsorted(key[kept], common), kept.sum())
        for key, kept in ((det_key, kept_det), (ann_key, kept_ann))
    )
    iou_ptr = np.concatenate([[0], np.cumsum(np.diff(det_ptr) * np.diff(ann_ptr))])
    images = selection.images[common // num_categories]
    pairs = Pairs(det_order[kept_det], anns.start + ann_order[kept_ann], images, det_ptr, ann_ptr, iou_ptr)
    return pairs, det_order[over]

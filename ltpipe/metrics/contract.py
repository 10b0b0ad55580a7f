"""What every evaluation engine is given: checked detections and ground truth, selected by the official rules.

Engines differ from the official evaluators, and from one another, in what they do with zero-area detections, with ids,
with ignored ground truth and with broken input. Here all of that is decided once, so that any engine returns the same
bits. The official order matters: under the LVIS protocol detections are first capped per image and then dropped when
their area is zero. Sources: the ``lvis`` 0.5.3 and ``pycocotools`` 2.0 packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError, unknown_name
from ltpipe.metrics.predictions import Floats, Predictions
from ltpipe.metrics.tensors import IOU_TYPES, IouType, Protocol

MAX_DETECTIONS: dict[Protocol, int] = {"lvis": 300, "coco": 100}
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """One evaluation with every rule applied.

    Attributes:
        gt: The ground truth.
        predictions: The detections.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        protocol: ``lvis`` or ``coco``.
        max_detections: Per image (LVIS) or per image and category (COCO).
        categories: ``(K,)`` rows of ``gt.category_ids`` evaluated, by ascending id.
        images: ``(I,)`` rows of ``gt.image_ids``, by ascending id.
        anns: ``(G,)`` rows of the annotations used, by image id, then file order.
        dets: ``(D,)`` rows of the detections used, by image id, then file order.
        areas: ``(D,) float64`` area of each detection used, square pixels.
        counts: How many detections and annotations each rule removed, and how many remain.
    """

    gt: AnnotationStore
    predictions: Predictions
    iou_type: IouType
    protocol: Protocol
    max_detections: int
    categories: Rows
    images: Rows
    anns: Rows
    dets: Rows
    areas: NDArray[np.float64]
    counts: dict[str, int]

    def by_category(self, max_dets: int) -> Iterator[Selection]:
        """Cut the evaluation into groups of categories with about ``max_dets`` detections each.

        The numbers of a category do not depend on the others: the results, one after the other, are those of the whole.
        """
        place = row_of(self.predictions.category_ids[self.dets], self.gt.category_ids[self.categories])
        used = np.cumsum(np.bincount(place, minlength=len(self.categories)))
        group = np.maximum(used - 1, 0) // max_dets
        of_ann = row_of(self.gt.ann_category[self.anns].astype(np.int64), self.categories)
        for number in np.unique(group):
            mine = group == number
            dets, anns = mine[place], mine[of_ann]
            yield replace(
                self,
                categories=self.categories[mine],
                anns=self.anns[anns],
                dets=self.dets[dets],
                areas=self.areas[dets],
            )

    def by_image(self) -> Iterator[tuple[int, slice, slice]]:
        """Yield ``(image row, slice of anns, slice of dets)`` for every image that has either, by ascending id."""
        ids = self.gt.image_ids[self.images]
        ann_ids = self.gt.image_ids[self.gt.ann_image[self.anns]]
        det_ids = self.predictions.image_ids[self.dets]
        bounds = [np.searchsorted(column, ids, side) for column in (ann_ids, det_ids) for side in ("left", "right")]
        for row, a, b, c, d in zip(self.images.tolist(), *(bound.tolist() for bound in bounds), strict=True):
            if b > a or d > c:
                yield row, slice(a, b), slice(c, d)


def select(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
    category_ids: Sequence[int] | NDArray[np.int64] | None = None,
    image_ids: NDArray[np.int64] | None = None,
) -> Selection:
    """Check the input and apply the protocol's rules.

    Args:
        gt: Ground truth.
        predictions: Detections of any categories and images of it.
        iou_type: What overlaps: ``bbox``, ``segm``, or ``boundary`` (masks and their contours). Masks are sized by
            their area even when boxes are present.
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        max_detections: Default: 300 per image (LVIS), 100 per image and category (COCO); -1 for no cap.
        category_ids: Evaluate only these; the numbers of a category do not depend on which others are evaluated.
        image_ids: Evaluate only these images; there are no detections of others.

    Raises:
        UserError: Unknown ids, scores or boxes that are not finite, malformed masks or masks of another size, or boxes
            (masks) asked for where there are none.
    """
    protocol, cap = _resolve(gt, predictions, iou_type, protocol, max_detections)
    predictions = predictions.checked()
    categories = _category_rows(gt, category_ids)
    image_row, category_row = known_rows(gt, predictions)
    anns, counts = counting_annotations(gt, protocol, categories, iou_type)
    images = np.argsort(gt.image_ids, kind="stable")
    if image_ids is not None:
        wanted = np.isin(gt.image_ids, image_ids)
        images, anns = images[wanted[images]], anns[wanted[gt.ann_image[anns]]]
        counts["gt"] = len(anns)
    dets, dropped = _detections(gt, predictions, protocol, cap, categories, anns, image_row, category_row)
    counts |= dropped
    areas = _areas(predictions, iou_type, dets)
    if protocol == "lvis":
        kept = areas > 0
        counts["zero_area"] = int(len(kept) - kept.sum())
        dets, areas = dets[kept], areas[kept]
    counts["evaluated"] = len(dets)
    limit = max(1, len(dets)) if cap == -1 else cap
    return Selection(gt, predictions, iou_type, protocol, limit, categories, images, anns, dets, areas, counts)


def _resolve(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    protocol: Protocol | None,
    max_detections: int | None,
) -> tuple[Protocol, int]:
    """Fill in the defaults and refuse what cannot be evaluated."""
    if iou_type not in IOU_TYPES:
        raise unknown_name("IoU type", iou_type, IOU_TYPES)
    protocol = protocol or ("lvis" if gt.federated else "coco")
    if protocol not in MAX_DETECTIONS:
        raise unknown_name("evaluation protocol", protocol, MAX_DETECTIONS)
    if protocol == "lvis" and not gt.federated:
        raise UserError(
            "the LVIS protocol needs neg_category_ids and not_exhaustive_category_ids of every image",
            fix="use the coco protocol for this data set",
        )
    column, name = (predictions.boxes, "boxes") if iou_type == "bbox" else (predictions.masks, "masks")
    if column is None and len(predictions):
        raise UserError(f"no {name} to evaluate", where=predictions.source)
    cap = MAX_DETECTIONS[protocol] if max_detections is None else max_detections
    if cap < 1 and cap != -1:
        raise UserError("impossible cap", where="max_detections", got=cap, allowed="a count, or -1 for no cap")
    return protocol, cap


def _category_rows(gt: AnnotationStore, category_ids: Sequence[int] | NDArray[np.int64] | None) -> Rows:
    wanted = gt.category_ids if category_ids is None else np.unique(np.asarray(category_ids, np.int64))
    rows = row_of(np.sort(wanted), gt.category_ids)
    if (rows < 0).any():
        raise UserError("category to evaluate is not in the ground truth", got=np.sort(wanted)[rows < 0][:5].tolist())
    return rows


def known_rows(gt: AnnotationStore, predictions: Predictions) -> tuple[Rows, Rows]:
    """Return the image and category row of every detection; refuse unknown ids and masks of another size."""
    image_row = row_of(predictions.image_ids, gt.image_ids)
    category_row = row_of(predictions.category_ids, gt.category_ids)
    both = (("image", image_row, predictions.image_ids), ("category", category_row, predictions.category_ids))
    for kind, rows, ids in both:
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise UserError(
                f"{kind} id is not in the ground truth",
                where=f"{predictions.source}: detection {unknown[0]}",
                got=f"{ids[unknown[0]]}; {len(unknown)} of {len(ids)} detections are affected",
                fix="evaluate against the annotation file the detections were made for",
            )
    if predictions.masks is not None:
        other = np.flatnonzero((predictions.masks.sizes != gt.image_sizes[image_row]).any(axis=1))
        if len(other):
            raise UserError(
                "a mask has another size than its image",
                where=f"{predictions.source}: detection {other[0]} (image {predictions.image_ids[other[0]]})",
                got=f"[height, width] {predictions.masks.sizes[other[0]].tolist()}; {len(other)} masks are affected",
                allowed=str(gt.image_sizes[image_row[other[0]]].tolist()),
            )
    return image_row, category_row


def counting_annotations(
    gt: AnnotationStore, protocol: Protocol, categories: Rows, iou_type: IouType
) -> tuple[Rows, dict[str, int]]:
    """Return the annotations used, by image id, and how many were left out."""
    used = np.isin(gt.ann_category, categories)
    counts = {}
    if iou_type != "bbox" and not gt.ann_has_mask.all():
        counts["gt_without_mask"] = int((used & ~gt.ann_has_mask).sum())
        used &= gt.ann_has_mask
    if protocol == "lvis":
        reasons = {"gt_crowd": gt.ann_iscrowd, "gt_ignore": gt.ann_ignore, "gt_zero_area": ~(gt.ann_area > 0)}
        for name, flag in reasons.items():
            counts[name] = int((used & flag).sum())
            used &= ~flag
    rows = np.flatnonzero(used)
    counts["gt"] = len(rows)
    return rows[np.argsort(gt.image_ids[gt.ann_image[rows]], kind="stable")], counts


def _detections(
    gt: AnnotationStore,
    predictions: Predictions,
    protocol: Protocol,
    cap: int,
    categories: Rows,
    anns: Rows,
    image_row: Rows,
    category_row: Rows,
) -> tuple[Rows, dict[str, int]]:
    """Return the detections that count, by image id, and how many each rule removed."""
    counts = {"detections": len(predictions)}
    keep = np.ones(len(predictions), bool)
    if protocol == "lvis" and cap != -1:
        keep &= within_cap(image_row, predictions.scores, cap)
    counts["over_cap"] = int(len(keep) - keep.sum())
    evaluated = np.zeros(len(gt.category_ids), bool)
    evaluated[categories] = True
    wanted = evaluated[category_row]
    counts["other_categories"] = int((keep & ~wanted).sum())
    keep &= wanted
    if protocol == "lvis":
        judged = np.isin(pair_of(gt, image_row, category_row), judged_pairs(gt, anns))
        counts["unverified"] = int((keep & ~judged).sum())
        keep &= judged
    rows = np.flatnonzero(keep)
    return rows[np.argsort(predictions.image_ids[rows], kind="stable")], counts


def within_cap(image_row: Rows, scores: Floats, cap: int) -> NDArray[np.bool_]:
    """Mark the ``cap`` best detections of every image; of equal scores the earlier ones."""
    keep = np.ones(len(scores), bool)
    per_image = np.bincount(image_row)
    crowded = np.flatnonzero(per_image[image_row] > cap)
    order = crowded[np.lexsort((-scores[crowded], image_row[crowded]))]
    starts = np.flatnonzero(np.diff(image_row[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    keep[order[rank >= cap]] = False
    return keep


def judged_pairs(gt: AnnotationStore, anns: Rows) -> Rows:
    """Return the (image, category) pairs about which the federated ground truth says something."""
    positive = pair_of(gt, gt.ann_image[anns].astype(np.int64), gt.ann_category[anns])
    return np.unique(np.concatenate([positive, _listed_pairs(gt, gt.negative_categories)]))


def partial_pairs(gt: AnnotationStore) -> Rows:
    """Return the (image, category) pairs of which there may be more objects than were annotated."""
    return np.unique(_listed_pairs(gt, gt.not_exhaustive_categories))


def _listed_pairs(gt: AnnotationStore, listed: Callable[[int], Rows]) -> Rows:
    lists = [listed(row) for row in range(len(gt.image_ids))]
    image = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
    category = row_of(np.concatenate([*lists, np.zeros(0, np.int64)]), gt.category_ids)
    return pair_of(gt, image, category)[category >= 0]


def pair_of(gt: AnnotationStore, image_row: Rows, category_row: NDArray[np.integer]) -> Rows:
    """Return a number for every image and category."""
    return image_row * len(gt.category_ids) + category_row


def _areas(predictions: Predictions, iou_type: IouType, dets: Rows) -> NDArray[np.float64]:
    if iou_type != "bbox" and predictions.masks is not None:
        assert predictions.masks.areas is not None, "masks that nobody checked"
        return predictions.masks.areas[dets].astype(np.float64)
    if iou_type == "bbox" and predictions.boxes is not None:
        boxes = predictions.boxes[dets].astype(np.float64)
        return boxes[:, 2] * boxes[:, 3]
    return np.zeros(len(dets))

"""AP-fixed and AP-pool: AP with a limit of detections per category instead of one per image.

A limit per image lets the classes compete: a class with higher scores takes the places of others. AP-fixed keeps the
best ``K`` detections of every category of the whole set, whatever the image; score transforms that are monotone per
class leave it unchanged. AP-pool puts the detections of many categories into one curve: it says whether scores mean the
same from class to class. Source: Dave et al., arXiv 2102.01066, ``achalddave/large-vocab-devil``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.data.store import AnnotationStore
from ltpipe.metrics.contract import select
from ltpipe.metrics.native_engine import curves, match_columns
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.tensors import IouType, Protocol

PER_CATEGORY = 10_000
"""``K`` of the published numbers on LVIS; keep it across runs that are compared."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FixedAP:
    """Precision and recall without a limit per image.

    Attributes:
        category_ids: ``(N,) int64``, ascending.
        precision: ``(T, R, N, A) float64`` of every category; -1 where there is nothing to be found.
        recall: ``(T, N, A) float64``, likewise.
        pooled: By name of the pool: precision ``(T, R)`` and recall ``(T,)`` of its categories together, objects of all
            sizes; -1 where there is nothing to be found.
        detections: ``(N,)`` detections of every category in front of the limit: with fewer than ``K`` the numbers of a
            category are too low, if its detector was limited.
        per_category: ``K``.
    """

    category_ids: NDArray[np.int64]
    precision: Floats
    recall: Floats
    pooled: dict[str, tuple[Floats, Floats]]
    detections: NDArray[np.int64]
    per_category: int = PER_CATEGORY

    @property
    def fewer(self) -> int:
        """Number of categories with fewer than ``K`` detections, those without any included."""
        return int((self.detections < self.per_category).sum())


def fixed_ap(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    *,
    pools: Mapping[str, Sequence[int]] | None = None,
    per_category: int = PER_CATEGORY,
    protocol: Protocol | None = None,
    category_ids: Sequence[int] | NDArray[np.int64] | None = None,
) -> FixedAP:
    """Evaluate with at most so many detections per category, and none per image.

    Args:
        gt: Annotations.
        predictions: Detections; of equal scores those that come first are kept.
        iou_type: ``bbox`` or ``segm``.
        pools: Category ids of each pool, e.g. those of a frequency group; None: no pools.
        per_category: ``K``. The limit comes before the federated rule: detections that it drops take places.
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        category_ids: Evaluate only these, e.g. the classes a phase knows.
    """
    kept = best_per_category(predictions, per_category)
    limited = predictions if len(kept) == len(predictions) else predictions.take(kept)
    selection = select(gt, limited, iou_type, protocol=protocol, max_detections=-1, category_ids=category_ids)
    matches, ids = match_columns(selection), gt.category_ids[selection.categories]
    columns = matches.columns
    by_category = columns.det_category[columns.by_category]
    whole = curves(matches, columns.by_category, by_category, columns.ann_category, len(ids))
    # Of equal scores, the published order: by image, in an image by category.
    scores = limited.scores[selection.dets]
    by_score = columns.by_image[np.argsort(-scores[columns.by_image], kind="stable")]
    pooled = {}
    for name, members in (pools or {}).items():
        inside = np.isin(ids, list(members))
        rows = by_score[inside[columns.det_category[by_score]]]
        group = np.where(inside[columns.ann_category], 0, -1)
        precision, recall = curves(matches, rows, np.zeros(len(rows), np.int64), group, 1)
        pooled[name] = precision[:, :, 0, 0], recall[:, 0, 0]
    found = row_of(predictions.category_ids, ids)
    return FixedAP(ids, *whole, pooled, np.bincount(found[found >= 0], minlength=len(ids)), per_category)


def best_per_category(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Return the rows of the best ``count`` detections of every category, ascending; of equal ones the earlier."""
    _, category, sizes = np.unique(predictions.category_ids, return_inverse=True, return_counts=True)
    if not (sizes > count).any():
        return np.arange(len(predictions))
    crowded = np.flatnonzero((sizes > count)[category])
    order = crowded[np.lexsort((-predictions.scores[crowded], category[crowded]))]
    rank = np.arange(len(order)) - np.searchsorted(category[order], category[order])
    keep = np.ones(len(predictions), bool)
    keep[order[rank >= count]] = False
    return np.flatnonzero(keep)

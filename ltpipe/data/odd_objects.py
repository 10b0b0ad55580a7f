"""Objects of an annotation file that look broken: nothing is refused here, somebody has to look at them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore
from ltpipe.data.summary import box_facts

Rows = NDArray[np.int64]
TWICE, UNLIKE, HOLLOW, STRETCHED, TINY = 0.9, 0.5, 0.05, 20.0, 2.0
WORDS = {
    "degenerate": "a pixel or less wide or high: left out of training",
    "outside": "outside of the image: left out of training",
    "over the border": "the box reaches over the border of the image by more than a pixel",
    "unlike": f"the box and the bounds of the mask overlap by less than {UNLIKE:g}",
    "hollow": f"the mask fills less than {HOLLOW:.0%} of its box",
    "twice": f"another object of the class in the same place (overlap above {TWICE:g})",
    "stretched": f"more than {STRETCHED:g} times as long as wide",
    "tiny": f"at most {TINY:g} pixels wide or high",
}


def odd_objects(store: AnnotationStore) -> dict[str, Rows]:
    """Return the annotation rows that look broken, kind by kind of :data:`WORDS`; crowd regions do not count.

    Masks of several polygons and run lengths are not compared with their boxes.
    """
    columns: dict[str, NDArray[Any]] = {"bbox": store.ann_bbox, "image": store.ann_image}
    degenerate, outside, over = box_facts(columns, store.image_sizes)
    w, h = store.ann_bbox[:, 2], store.ann_bbox[:, 3]
    unlike, hollow = _unlike_masks(store)
    with np.errstate(divide="ignore", invalid="ignore"):
        stretched = np.maximum(w / h, h / w) > STRETCHED
    flags = {
        "degenerate": degenerate,
        "outside": outside,
        "over the border": over,
        "unlike": unlike,
        "hollow": hollow,
        "twice": _twice(store),
        "stretched": stretched & ~degenerate,
        "tiny": (np.minimum(w, h) <= TINY) & ~degenerate,
    }
    objects = ~(store.ann_iscrowd | store.ann_ignore)
    return {kind: np.flatnonzero(flag & objects) for kind, flag in flags.items()}


def _unlike_masks(store: AnnotationStore) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which boxes ``(A,)`` are unlike the bounds of their mask, and which are nearly empty."""
    unlike, hollow = np.zeros(len(store.ann_ids), bool), np.zeros(len(store.ann_ids), bool)
    places, xy = store.outlines(np.arange(len(store.ann_ids)))
    rows = np.flatnonzero(np.diff(places) > 0)
    if not len(rows):
        return unlike, hollow
    corners, starts = xy.reshape(-1, 2), places[rows] // 2
    counts = (np.diff(places)[rows] // 2).astype(np.int64)
    # Only rows with corners are reduced; between two of them lie none.
    low, high = np.minimum.reduceat(corners, starts), np.maximum.reduceat(corners, starts)
    last = starts + counts - 1
    following = np.minimum(np.arange(len(corners)) + 1, len(corners) - 1)
    following[last] = starts
    cross = corners[:, 0] * corners[following, 1] - corners[following, 0] * corners[:, 1]
    area = np.abs(np.add.reduceat(cross, starts)) / 2
    box = store.ann_bbox[rows]
    first, second = np.maximum(box[:, :2], low), np.minimum(box[:, :2] + box[:, 2:], high)
    shared = np.prod(np.clip(second - first, 0, None), axis=1)
    size = box[:, 2] * box[:, 3]
    union = size + np.prod(high - low, axis=1) - shared
    large = box[:, 2:].min(axis=1) > 4  # on a few pixels half a pixel decides
    unlike[rows] = (shared < UNLIKE * union) & large
    hollow[rows] = (area < HOLLOW * size) & large
    return unlike, hollow


def _twice(store: AnnotationStore) -> NDArray[np.bool_]:
    """Return which objects ``(A,)`` lie where an earlier one of their class lies."""
    found = np.zeros(len(store.ann_ids), bool)
    group = store.ann_image.astype(np.int64) * len(store.category_ids) + store.ann_category
    order = np.lexsort((np.arange(len(group)), store.ann_bbox[:, 0], group))
    # In the order of their left sides, those that overlap so much are near each other.
    for step in range(1, 4):
        one, other = order[:-step], order[step:]
        same = group[one] == group[other]
        one, other = one[same], other[same]
        found[np.maximum(one, other)[_overlap(store.ann_bbox[one], store.ann_bbox[other]) > TWICE]] = True
    return found


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    first = np.maximum(one[:, :2], other[:, :2])
    second = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    shared = np.prod(np.clip(second - first, 0, None), axis=1)
    union = one[:, 2] * one[:, 3] + other[:, 2] * other[:, 3] - shared
    overlap: NDArray[np.float64] = shared / np.maximum(union, 1e-9)
    return overlap

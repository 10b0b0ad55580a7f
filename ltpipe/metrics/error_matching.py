"""The inner loop of error kinds: who is right, and what is wrong with the others, image by image.

Detections and annotations come by image: image ``p`` owns the detections ``det_ptr[p]:det_ptr[p + 1]``, best score
first, the annotations ``gt_ptr[p]:gt_ptr[p + 1]``, and their overlaps, one row for each detection, from ``iou_ptr[p]``
on. Crowds are no annotations here: the overlap with a crowd is the part of the detection that lies in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltpipe.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
CLS, LOC, BOTH, DUPE, BKG, MISS = range(6)
RIGHT, IGNORED, WRONG = range(3)


@compiled
def find(ious: Floats, category: int, gt_category: Ints, crowd: Flags, used: Flags, positive: float) -> int:
    """Return the free annotation of the category with the largest overlap, of equal ones the first; -1: none.

    -2 says that there is none, and that the detection lies in a crowd of the category.
    """
    best, found, inside = 0.0, -1, False
    for g in range(len(ious)):
        if gt_category[g] != category:
            continue
        if crowd[g]:
            inside = inside or ious[g] > positive
        elif not used[g] and ious[g] >= positive and (found < 0 or ious[g] > best):
            best, found = ious[g], g
    return found if found >= 0 or not inside else -2


@compiled
def name_error(
    ious: Floats, category: int, gt_category: Ints, crowd: Flags, used: Flags, positive: float, background: float
) -> tuple[int, int]:
    """Return the kind of error, and the annotation that an error of class or place means, else -1."""
    own, other, again, own_at, other_at = -1.0, -1.0, -1.0, -1, -1
    for g in range(len(ious)):
        if crowd[g]:
            continue
        if gt_category[g] != category:
            if ious[g] > other:
                other, other_at = ious[g], g
            continue
        if ious[g] > own:
            own, own_at = ious[g], g
        if used[g]:
            again = max(again, ious[g])
    if background <= own <= positive:
        return LOC, own_at
    if other >= positive:
        return CLS, other_at
    if again >= positive:
        return DUPE, -1
    # Also where the image shows nothing at all.
    return (BKG if max(own, other) <= background else BOTH), -1


@compiled
def tell_apart(
    det_ptr: Ints,
    gt_ptr: Ints,
    iou_ptr: Ints,
    ious: Floats,
    det_category: Ints,
    gt_category: Ints,
    crowd: Flags,
    unjudged: Flags,
    positive: float,
    background: float,
    state: Ints,
    kind: Ints,
    points_to: Ints,
    used: Flags,
) -> None:
    """Match detections and annotations at one overlap, and name the error of every detection that is not right.

    Args:
        det_ptr: ``(P + 1,)``.
        gt_ptr: ``(P + 1,)``.
        iou_ptr: ``(P + 1,)``.
        ious: Overlaps.
        det_category: ``(D,)``.
        gt_category: ``(G,)``.
        crowd: ``(G,)``.
        unjudged: ``(D,)`` nothing is known of the category in the image: ignored unless right.
        positive: Least overlap of a right detection.
        background: Larger overlaps are not background.
        state: ``(D,)`` result: right, ignored or wrong.
        kind: ``(D,)`` result: the error, -1 for right ones.
        points_to: ``(D,)`` result: the annotation that is found, or meant by an error of class or place; else -1.
        used: ``(G,)`` result, false: annotations that are found.
    """
    for p in range(len(det_ptr) - 1):
        anns = slice(gt_ptr[p], gt_ptr[p + 1])
        width = gt_ptr[p + 1] - gt_ptr[p]
        categories, crowds, taken = gt_category[anns], crowd[anns], used[anns]
        for d in range(det_ptr[p], det_ptr[p + 1]):
            row = iou_ptr[p] + (d - det_ptr[p]) * width
            found = find(ious[row : row + width], det_category[d], categories, crowds, taken, positive)
            if found >= 0:
                taken[found] = True
                state[d], kind[d], points_to[d] = RIGHT, -1, gt_ptr[p] + found
            else:
                state[d] = IGNORED if unjudged[d] or found == -2 else WRONG
        for d in range(det_ptr[p], det_ptr[p + 1]):
            if state[d] != RIGHT:
                row = iou_ptr[p] + (d - det_ptr[p]) * width
                given = ious[row : row + width], det_category[d], categories, crowds, taken
                kind[d], meant = name_error(*given, positive, background)
                points_to[d] = gt_ptr[p] + meant if meant >= 0 else -1

"""What every detection matches at one IoU threshold, and how well: calibration of scores is fitted and judged on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltpipe.compiled import compiled
from ltpipe.metrics.contract import Selection
from ltpipe.metrics.kernels import choose
from ltpipe.metrics.native_engine import every_pair, never_wrong, pair_overlaps, sort_columns

HIGHEST = 1 - 1e-10
"""Thresholds of the official packages are not above this."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Matched(NamedTuple):
    """Detections of a selection, in its order.

    Attributes:
        overlap: ``(D,) float64`` IoU with the object that is found; -1 for none.
        ignored: ``(D,)`` neither right nor wrong: the object does not count, or nothing was found where the image may
            show more than was annotated.
    """

    overlap: Floats
    ignored: Flags


def matched_overlaps(selection: Selection, threshold: float, *, partial: bool = True) -> Matched:
    """Match detections and annotations at one threshold, objects of all sizes.

    Args:
        selection: Boxes or masks.
        threshold: Least IoU; at 0 any free object of the category is found, even without overlap.
        partial: Detections that find nothing are ignored where their category is not annotated exhaustively; otherwise
            they are wrong, as in the published code of Dave et al. (arXiv 2102.01066).
    """
    columns = sort_columns(selection)
    overlap, ignored = np.full(len(selection.dets), -1.0), np.zeros(len(selection.dets), bool)
    for pairs, over in every_pair(selection, columns):
        # Under the COCO protocol a pair has only so many detections.
        ignored[over] = True
        if len(pairs.images):
            ious = pair_overlaps(selection, pairs, threshold)
            crowd = selection.gt.ann_iscrowd[selection.anns[pairs.anns]].astype(bool)
            best, aside = np.full(len(pairs.dets), -1.0), np.zeros(len(pairs.dets), bool)
            where = pairs.det_ptr, pairs.ann_ptr, pairs.iou_ptr
            find_overlaps(*where, ious, crowd, min(threshold, HIGHEST), best, aside)
            overlap[pairs.dets], ignored[pairs.dets] = best, aside
    if partial:
        ignored |= never_wrong(selection, columns) & (overlap < 0)
    return Matched(overlap, ignored)


@compiled
def find_overlaps(
    det_ptr: Ints, gt_ptr: Ints, iou_ptr: Ints, ious: Floats, crowd: Flags, threshold: float, best: Floats, aside: Flags
) -> None:
    """Match pair by pair, see :func:`ltpipe.metrics.kernels.match`.

    Args:
        det_ptr: ``(P + 1,)``; detections of a pair by descending score.
        gt_ptr: ``(P + 1,)``.
        iou_ptr: ``(P + 1,)``.
        ious: Overlaps.
        crowd: ``(G,)`` annotations that take any number of detections, which are neither right nor wrong then.
        threshold: Least overlap.
        best: ``(D,)`` result, -1: overlap with the object that is found.
        aside: ``(D,)`` result, false: matched with a crowd.
    """
    taken = np.zeros(int(np.max(np.diff(gt_ptr))), np.bool_)
    for p in range(len(det_ptr) - 1):
        first, width = gt_ptr[p], gt_ptr[p + 1] - gt_ptr[p]
        taken[:width] = False
        for d in range(det_ptr[p], det_ptr[p + 1]):
            row = iou_ptr[p] + (d - det_ptr[p]) * width
            own = crowd[first : gt_ptr[p + 1]]
            found = choose(ious[row : row + width], threshold, own, own, taken)
            if found >= 0:
                taken[found] = True
                if own[found]:
                    aside[d] = True
                else:
                    best[d] = ious[row + found]

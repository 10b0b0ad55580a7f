"""The inner loops of the evaluation: overlaps of detections and ground truth, matching, precision and recall.

They do what ``maskApi.c`` of pycocotools 2.0 and the evaluators of ``lvis`` 0.5.3 and pycocotools do, operation by
operation where numbers are rounded, so that results are equal in every bit. What cannot change a result is left out:
overlaps that are known to stay below the lowest threshold are not computed and left at zero.

Detections and annotations come by pair: those of one category in one image lie side by side, pair ``p`` owns the
detections ``det_ptr[p]:det_ptr[p + 1]``, the annotations ``gt_ptr[p]:gt_ptr[p + 1]``, and their overlaps, one row for
each detection, from ``iou_ptr[p]`` on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.compiled import compiled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Bits = NDArray[np.uint16]


@compiled
def copy_spans(text: NDArray[np.uint8], starts: Ints, stops: Ints, out: NDArray[np.uint8], out_starts: Ints) -> None:
    """Copy ``text[starts[i]:stops[i]]`` to ``out[out_starts[i]:]`` for every ``i``."""
    for i in range(len(starts)):
        place = out_starts[i]
        for source in range(starts[i], stops[i]):
            out[place] = text[source]
            place += 1


@compiled
def decode_ends(text: NDArray[np.uint8], start: int, stop: int, ends: Ints) -> int:
    """Decode one compressed run-length mask; return how many runs it has.

    Args:
        text: Buffer.
        start: First character of the mask.
        stop: Last plus one; a string that stops in the middle of a number ends there.
        ends: Room for the end of every run in pixels, as many numbers as characters. Foreground reaches from
            ``ends[0]`` to ``ends[1]``, from ``ends[2]`` to ``ends[3]``, and so on.
    """
    count, total, last, before = 0, 0, 0, 0
    place = start
    while place < stop:
        value, shift = 0, 0
        more = True
        while more and place < stop:
            digit: Any = np.int64(text[place]) - 48
            value |= (digit & 31) << shift
            shift += 5
            more = (digit & 32) != 0
            if not more and digit & 16:
                value -= 1 << shift
            place += 1
        if count > 2:
            value += before
        before, last = last, value
        total += value
        ends[count] = total
        count += 1
    return count


@compiled
def common_pixels(first: Ints, first_count: int, second: Ints, second_count: int) -> int:
    """Return how many foreground pixels two masks of one size share."""
    common, i, j = 0, 1, 1
    while i < first_count and j < second_count:
        low, high = max(first[i - 1], second[j - 1]), min(first[i], second[j])
        if high > low:
            common += high - low
        if first[i] < second[j]:
            i += 2
        else:
            j += 2
    return common


@compiled
def mask_overlaps(
    det_ptr: Ints,
    gt_ptr: Ints,
    iou_ptr: Ints,
    text: NDArray[np.uint8],
    pointer: Ints,
    det_areas: Floats,
    gt_pointer: Ints,
    gt_ends: Ints,
    gt_counts: Ints,
    gt_areas: Ints,
    crowd: Flags,
    heights: Ints,
    lowest: float,
    ious: Floats,
) -> None:
    """Write the IoUs of masks; a detection that no annotation resembles in size is not even decoded.

    Args:
        det_ptr: ``(P + 1,)``.
        gt_ptr: ``(P + 1,)``.
        iou_ptr: ``(P + 1,)``.
        text: Masks of the detections, back to back.
        pointer: ``(D + 1,)`` their places in ``text``.
        det_areas: ``(D,)`` their foreground pixels.
        gt_pointer: ``(G + 1,)`` the annotations' places in ``gt_ends``.
        gt_ends: Ends of their runs.
        gt_counts: ``(G,)`` how many runs they have.
        gt_areas: ``(G,)`` their foreground pixels.
        crowd: ``(G,)`` the overlap with a crowd is measured against the detection alone.
        heights: ``(P,)`` height of each pair's image.
        lowest: Smaller overlaps need not be told from zero.
        ious: Room for the result, zeros.
    """
    longest = 0
    for i in range(len(pointer) - 1):
        longest = max(longest, pointer[i + 1] - pointer[i])
    ends = np.zeros(longest, np.int64)
    for p in range(len(det_ptr) - 1):
        width = gt_ptr[p + 1] - gt_ptr[p]
        for d in range(det_ptr[p], det_ptr[p + 1]):
            area, count = det_areas[d], -1
            for g in range(gt_ptr[p], gt_ptr[p + 1]):
                gt_area = gt_areas[g]
                if not crowd[g] and min(area, gt_area) < lowest * max(area, gt_area):
                    continue
                if count < 0:
                    count = decode_ends(text, pointer[d], pointer[d + 1], ends)
                if count < 2 or gt_counts[g] < 2:
                    continue
                own = gt_ends[gt_pointer[g] : gt_pointer[g + 1]]
                # The columns that both may cover, times their height, bound the pixels in common.
                left = max(ends[0], own[0]) // heights[p]
                right = (min(ends[count // 2 * 2 - 1], own[gt_counts[g] // 2 * 2 - 1]) - 1) // heights[p]
                most = min((right - left + 1) * heights[p], min(area, gt_area))
                if most <= 0 or (not crowd[g] and most < lowest * (area + gt_area - most)):
                    continue
                common = common_pixels(ends, count, own, gt_counts[g])
                union = area if crowd[g] else area + gt_area - common
                if common:
                    ious[iou_ptr[p] + (d - det_ptr[p]) * width + g - gt_ptr[p]] = common / union


@compiled
def box_overlaps(
    det_ptr: Ints, gt_ptr: Ints, iou_ptr: Ints, boxes: Floats, gt_boxes: Floats, crowd: Flags, ious: Floats
) -> None:
    """Write the IoUs of boxes ``(D, 4)`` and ``(G, 4)``, xywh, pixels; the other arguments as for masks."""
    for p in range(len(det_ptr) - 1):
        place = iou_ptr[p]
        for d in range(det_ptr[p], det_ptr[p + 1]):
            x, y, w, h = boxes[d]
            for g in range(gt_ptr[p], gt_ptr[p + 1]):
                u, v, s, t = gt_boxes[g]
                width = min(w + x, s + u) - max(x, u)
                height = min(h + y, t + v) - max(y, v)
                if width > 0 and height > 0:
                    common = width * height
                    union = w * h if crowd[g] else w * h + s * t - common
                    ious[place] = common / union
                place += 1


@compiled
def choose(ious: Floats, threshold: float, ignored: Flags, crowd: Flags, taken: Flags) -> int:
    """Return the free annotation with the largest overlap, of equal ones the last, ignored ones if need be; else -1."""
    best, found, second_best, second = threshold, -1, threshold, -1
    for g in range(len(ious)):
        if ious[g] < threshold or (taken[g] and not crowd[g]):
            continue
        if ignored[g]:
            if ious[g] >= second_best:
                second_best, second = ious[g], g
        elif ious[g] >= best:
            best, found = ious[g], g
    return found if found >= 0 else second


@compiled
def match(
    det_ptr: Ints,
    gt_ptr: Ints,
    iou_ptr: Ints,
    ious: Floats,
    ignored: Flags,
    crowd: Flags,
    thresholds: Floats,
    matched: Bits,
    counted: Bits,
) -> None:
    """Give every detection, best score first, the unmatched annotation it overlaps most; ignored ones come second.

    Args:
        det_ptr: ``(P + 1,)``; detections of a pair by descending score.
        gt_ptr: ``(P + 1,)``.
        iou_ptr: ``(P + 1,)``.
        ious: Overlaps.
        ignored: ``(A, G)`` annotations that are neither found nor missed at an object size.
        crowd: ``(G,)`` annotations that take any number of detections.
        thresholds: ``(T,)`` ascending; bit ``t`` of the results belongs to ``thresholds[t]``.
        matched: ``(A, D)`` result, zeros: matched with any annotation.
        counted: ``(A, D)`` result, zeros: matched with one that is not ignored.
    """
    taken = np.zeros(int(np.max(np.diff(gt_ptr))), np.bool_)
    largest = np.zeros(int(np.max(np.diff(det_ptr))))
    for p in range(len(det_ptr) - 1):
        first, width = gt_ptr[p], gt_ptr[p + 1] - gt_ptr[p]
        dets = det_ptr[p + 1] - det_ptr[p]
        for d in range(dets):
            row = iou_ptr[p] + d * width
            largest[d] = np.max(ious[row : row + width])
        for a in range(len(ignored)):
            for t in range(len(thresholds)):
                taken[:width] = False
                for d in range(dets):
                    if largest[d] < thresholds[t]:
                        continue
                    row = iou_ptr[p] + d * width
                    found = choose(ious[row : row + width], thresholds[t], ignored[a, first:], crowd[first:], taken)
                    if found >= 0:
                        taken[found] = True
                        matched[a, det_ptr[p] + d] |= 1 << t
                        if not ignored[a, first + found]:
                            counted[a, det_ptr[p] + d] |= 1 << t


@compiled
def accumulate(
    pointer: Ints,
    hits: Bits,
    misses: Bits,
    objects: Ints,
    recall_thresholds: Floats,
    precision: Floats,
    recall: Floats,
) -> None:
    """Turn detections by category and descending score into precision and recall.

    Precision at a recall is the best one at that recall or a larger one, and it only rises with a hit: everything is
    known at the hits.

    Args:
        pointer: ``(K + 1,)``; category ``k`` owns the detections ``pointer[k]:pointer[k + 1]``.
        hits: ``(A, D)``; bit ``t``: a true positive at IoU threshold ``t``.
        misses: ``(A, D)``; bit ``t``: a false positive. Neither: ignored.
        objects: ``(K, A)`` annotations to be found.
        recall_thresholds: ``(R,)`` ascending.
        precision: ``(T, R, K, A)`` result; stays as it is where there is nothing to be found.
        recall: ``(T, K, A)`` result, likewise.
    """
    best = np.zeros(int(np.sum(objects)) + 1)
    tiny = np.spacing(1.0)
    for k in range(len(pointer) - 1):
        for a in range(len(hits)):
            total = objects[k, a]
            if total == 0:
                continue
            for t in range(len(recall)):
                found, wrong, bit = 0, 0, 1 << t
                for d in range(pointer[k], pointer[k + 1]):
                    if hits[a, d] & bit:
                        found += 1
                        best[found] = found / (wrong + found + tiny)
                    elif misses[a, d] & bit:
                        wrong += 1
                recall[t, k, a] = found / total
                for place in range(found - 1, 0, -1):
                    best[place] = max(best[place], best[place + 1])
                place = 1
                for r in range(len(recall_thresholds)):
                    while place <= found and place / total < recall_thresholds[r]:
                        place += 1
                    precision[t, r, k, a] = best[place] if place <= found else 0.0

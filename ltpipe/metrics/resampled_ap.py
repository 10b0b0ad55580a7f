"""AP of every category on every resample of the images, from matches that are there already."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.compiled import compiled
from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.contract import Selection
from ltpipe.metrics.native_engine import Matches
from ltpipe.metrics.resamples import COUNT, SEED, Resamples, draw_images
from ltpipe.metrics.tensors import IOU_THRESHOLDS, RECALL_THRESHOLDS
from ltpipe.run.cores import cores

LANES = 64
"""Resamples that are computed side by side."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint16]
Weights = NDArray[np.uint8]


def resample(
    selection: Selection, matches: Matches, classes: pd.DataFrame, *, count: int = COUNT, seed: int = SEED
) -> Resamples:
    """Return AP, AP50, APr, APc and APf on every resample of the images.

    Args:
        selection: Detections and annotations.
        matches: What matched what.
        classes: ``category_id`` and ``frequency`` of all categories.
        count: Number of resamples.
        seed: Of the draws.
    """
    gt = selection.gt
    weights, images = draw_images(gt.image_ids[selection.images], count, seed)
    ap, ap50 = weighted_ap(selection, matches, weights)
    letters = classes.set_index("category_id")["frequency"].reindex(gt.category_ids[selection.categories]).to_numpy()
    values = {"AP": _means(ap), "AP50": _means(ap50)}
    values |= {f"AP{letter}": _means(ap[letters == letter]) for letter in FREQUENCY_NAMES}
    return Resamples(values, images)


def weighted_ap(selection: Selection, matches: Matches, weights: Weights) -> tuple[Floats, Floats]:
    """Return AP and AP50 of every category where images count more than once, or not at all.

    Equal scores keep their order; an image that counts twice has each of its detections twice, side by side.

    Args:
        selection: Detections and annotations.
        matches: What matched what.
        weights: ``(I, B) uint8`` how often each image counts, images by ascending id.

    Returns:
        Both ``(K, B) float64``, objects of all sizes; NaN where a category has no object.
    """
    columns, number = matches.columns, len(selection.categories)
    rows = columns.by_category
    anns = np.flatnonzero(matches.wanted[0])
    anns = anns[np.argsort(columns.ann_category[anns], kind="stable")]
    det_ptr, ann_ptr = (
        np.concatenate([[0], np.cumsum(np.bincount(column, minlength=number))])
        for column in (columns.det_category[rows], columns.ann_category[anns])
    )
    found = columns.det_image[rows], matches.hits[0][rows], matches.misses[0][rows]
    objects, levels = columns.ann_image[anns], (len(IOU_THRESHOLDS), RECALL_THRESHOLDS)

    def part(own: Weights) -> tuple[Floats, Floats]:
        ap, ap50 = np.full((number, own.shape[1]), np.nan), np.full((number, own.shape[1]), np.nan)
        accumulate_weighted(det_ptr, ann_ptr, *found, objects, own, *levels, ap, ap50)
        return ap, ap50

    with ThreadPoolExecutor(cores()) as pool:
        ap, ap50 = zip(*pool.map(part, _parts(weights)), strict=True)
    return np.concatenate(ap, axis=1), np.concatenate(ap50, axis=1)


def _parts(weights: Weights) -> Iterator[Weights]:
    for start in range(0, weights.shape[1], LANES):
        yield np.ascontiguousarray(weights[:, start : start + LANES])


def _means(values: Floats) -> Floats:
    """Return ``(B,)`` means over the categories ``(K, B)`` that are present; NaN where none is."""
    present = np.isfinite(values)
    count = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0)
    means: Floats = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return means


@compiled
def weighted_hits(image: Ints, hit: Bits, miss: Bits, bit: int, weights: Weights, best: Floats, reached: Ints) -> int:
    """Find precision and number of objects found at every hit of one category at one IoU threshold.

    Args:
        image: ``(D,)`` of the detections by descending score.
        hit: ``(D,)``.
        miss: ``(D,)``.
        bit: Of the threshold.
        weights: ``(I, L)``.
        best: ``(H, L)`` result: the best precision at a hit or a later one.
        reached: ``(H, L)`` result: objects found.

    Returns:
        Number of hits.
    """
    lanes, tiny, last, rows = weights.shape[1], np.spacing(1.0), -1, 0
    found, wrong = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    for d in range(len(image)):
        if hit[d] & bit:
            last = d
    # Precision is asked for at hits only: what comes after the last one does not matter.
    for d in range(last + 1):
        if hit[d] & bit:
            for lane in range(lanes):
                found[lane] += weights[image[d], lane]
                reached[rows, lane] = found[lane]
                best[rows, lane] = found[lane] / (wrong[lane] + found[lane] + tiny)
            rows += 1
        elif miss[d] & bit:
            for lane in range(lanes):
                wrong[lane] += weights[image[d], lane]
    for row in range(rows - 2, -1, -1):
        for lane in range(lanes):
            best[row, lane] = max(best[row, lane], best[row + 1, lane])
    return rows


@compiled
def weighted_areas(best: Floats, reached: Ints, total: Ints, recall_thresholds: Floats, area: Floats) -> None:
    """Average the precision over all levels of recall; ``best`` and ``reached`` are ``(H, L)``, the others ``(L,)``."""
    levels, covered = len(recall_thresholds), np.zeros(len(total), np.int64)
    area[:] = 0.0
    for row in range(len(best)):
        for lane in range(len(total)):
            if total[lane] == 0:
                continue
            recall = reached[row, lane] / total[lane]
            # Levels up to this recall: a guess, as they are evenly spaced, then what the comparison says.
            level = int(recall * (levels - 1))
            while level + 1 < levels and recall_thresholds[level + 1] <= recall:
                level += 1
            while recall_thresholds[level] > recall:
                level -= 1
            area[lane] += best[row, lane] * (level + 1 - covered[lane])
            covered[lane] = level + 1
    area /= levels


@compiled
def accumulate_weighted(
    det_ptr: Ints,
    ann_ptr: Ints,
    det_image: Ints,
    hits: Bits,
    misses: Bits,
    ann_image: Ints,
    weights: Weights,
    num_thresholds: int,
    recall_thresholds: Floats,
    ap: Floats,
    ap50: Floats,
) -> None:
    """Turn detections by category and descending score into AP, as :func:`ltpipe.metrics.kernels.accumulate`.

    Args:
        det_ptr: ``(K + 1,)``; category ``k`` owns the detections ``det_ptr[k]:det_ptr[k + 1]``.
        ann_ptr: ``(K + 1,)``, likewise for objects.
        det_image: ``(D,)``.
        hits: ``(D,)``; bit ``t``: a true positive at IoU threshold ``t``.
        misses: ``(D,)``; bit ``t``: a false positive. Neither: ignored.
        ann_image: ``(G,)``.
        weights: ``(I, L)``.
        num_thresholds: ``T``.
        recall_thresholds: ``(R,)`` ascending from 0.
        ap: ``(K, L)`` result, NaN.
        ap50: ``(K, L)`` result, NaN: at the first threshold.
    """
    lanes, most = weights.shape[1], 1
    for k in range(len(det_ptr) - 1):
        most = max(most, int(np.count_nonzero(hits[det_ptr[k] : det_ptr[k + 1]])))
    best, reached = np.zeros((most, lanes)), np.zeros((most, lanes), np.int64)
    total, area = np.zeros(lanes, np.int64), np.zeros(lanes)
    for k in range(len(det_ptr) - 1):
        own = slice(det_ptr[k], det_ptr[k + 1])
        total[:] = 0
        for g in range(ann_ptr[k], ann_ptr[k + 1]):
            for lane in range(lanes):
                total[lane] += weights[ann_image[g], lane]
        for lane in range(lanes):
            if total[lane] > 0:
                ap[k, lane], ap50[k, lane] = 0.0, 0.0
        for t in range(num_thresholds):
            rows = weighted_hits(det_image[own], hits[own], misses[own], 1 << t, weights, best, reached)
            weighted_areas(best[:rows], reached[:rows], total, recall_thresholds, area)
            for lane in range(lanes):
                if total[lane] > 0:
                    ap[k, lane] += area[lane] / num_thresholds
                    if t == 0:
                        ap50[k, lane] = area[lane]

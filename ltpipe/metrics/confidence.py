"""Do scores mean what they say: expected calibration error of detections, over bins of scores.

Sources: ECE of detections, Dave et al., arXiv 2102.01066 (``achalddave/large-vocab-devil``); D-ECE and LaECE, Kuzucu et
al., arXiv 2405.20459 (``fiveai/detection_calibration``). Most detections have low scores and lie in the first bin: read
the errors with the number of detections, and class by class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.id_rows import row_of
from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.contract import Selection
from ltpipe.metrics.matched_overlaps import matched_overlaps

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 20
RIGHT = 0.5
"""Least IoU of a right detection."""
Closed = Literal["left", "right"]


@dataclass(frozen=True)
class Bins:
    """Detections sorted by their score.

    Attributes:
        count: ``(n,) int64`` detections.
        score: ``(n,) float64`` sum of their scores.
        target: ``(n,) float64`` sum of what the scores should be.
    """

    count: Ints
    score: Floats
    target: Floats

    @property
    def error(self) -> float:
        """Mean distance of score and target over the bins, by the share of detections; NaN without any."""
        total = int(self.count.sum())
        return float(np.abs(self.target - self.score).sum() / total) if total else float("nan")

    def diagram(self) -> dict[str, list[Any]]:
        """Return what a reliability diagram shows: by bin detections, mean score and mean target, None where empty."""
        filled = np.maximum(self.count, 1)
        means = {"score": self.score / filled, "target": self.target / filled}
        empty = self.count == 0
        return {"count": self.count.tolist()} | {
            name: [None if gone else float(value) for value, gone in zip(values, empty, strict=True)]
            for name, values in means.items()
        }


def bin_of(scores: NDArray[np.floating], bins: int, closed: Closed = "left") -> Ints:
    """Return the bin of every score among equal bins of [0, 1].

    Args:
        scores: ``(D,)`` in [0, 1].
        bins: Their number.
        closed: Which end of a bin belongs to it; the last bin then has its upper end too, or the first its lower.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    side: Closed = "right" if closed == "left" else "left"
    return np.clip(np.searchsorted(edges, np.asarray(scores, np.float64), side=side) - 1, 0, bins - 1)


def bin_detections(
    scores: NDArray[np.floating], targets: NDArray[Any], bins: int = BINS, closed: Closed = "left"
) -> Bins:
    """Sort detections into bins; ``targets`` ``(D,)`` are what their scores should be."""
    place = bin_of(scores, bins, closed)
    sums = [np.bincount(place, np.asarray(values, np.float64), bins).astype(np.float64) for values in (scores, targets)]
    return Bins(np.bincount(place, minlength=bins), *sums)


def class_errors(
    category: Ints,
    scores: NDArray[np.floating],
    targets: NDArray[Any],
    num_categories: int,
    bins: int = BINS,
    closed: Closed = "left",
) -> Floats:
    """Return ``(K,)`` the calibration error of every category, NaN without detections."""
    place = category * bins + bin_of(scores, bins, closed)
    size = num_categories * bins
    gap = np.bincount(place, np.asarray(targets, np.float64) - np.asarray(scores, np.float64), minlength=size)
    total = np.bincount(category, minlength=num_categories)
    sums = np.abs(gap.reshape(num_categories, bins)).sum(axis=1)
    errors: Floats = np.divide(sums, total, out=np.full(num_categories, np.nan), where=total > 0)
    return errors


@dataclass(frozen=True)
class Confidence:
    """Calibration errors of one set of detections; ``K`` categories.

    Attributes:
        of_class: ``(K,)`` D-ECE: distance of score and precision, NaN without objects or detections.
        localization: ``(K,)`` LaECE0: distance of score and IoU with the object that is found, likewise.
        groups: D-ECE of the detections of all categories together (``all``) and of those of frequency groups, as bins.
    """

    of_class: Floats
    localization: Floats
    groups: Mapping[str, Bins]


def measure_confidence(
    selection: Selection, scores: NDArray[np.floating], classes: pd.DataFrame, threshold: float = RIGHT
) -> Confidence | None:
    """Compare scores with what they promise.

    Detections that are neither right nor wrong are left out, and those of categories without objects.

    Args:
        selection: Detections and annotations.
        scores: Of all predictions, also those that are not selected.
        classes: ``category_id`` and ``frequency`` of all categories.
        threshold: Least IoU of a right detection.

    Returns:
        None if scores are no probabilities: below 0 or above 1.
    """
    own = np.asarray(scores[selection.dets], np.float64)
    if len(own) and (own.min() < 0 or own.max() > 1):
        return None
    gt, number = selection.gt, len(selection.categories)
    ids = gt.category_ids[selection.categories]
    category = row_of(selection.predictions.category_ids[selection.dets], ids)
    shown = np.bincount(
        row_of(gt.ann_category[selection.anns].astype(np.int64), selection.categories), minlength=number
    )
    letters = classes.set_index("category_id")["frequency"].reindex(ids).to_numpy()
    right, localization = matched_overlaps(selection, threshold), matched_overlaps(selection, 0.0)
    used = ~right.ignored & (shown[category] > 0)
    found = right.overlap >= 0
    members = {"all": used} | {letter: used & (letters == letter)[category] for letter in FREQUENCY_NAMES}
    groups = {name: bin_detections(own[rows], found[rows]) for name, rows in members.items()}
    errors = class_errors(category[used], own[used], found[used], number)
    used = ~localization.ignored & (shown[category] > 0)
    overlap = np.maximum(localization.overlap[used], 0.0)
    return Confidence(errors, class_errors(category[used], own[used], overlap, number), groups)

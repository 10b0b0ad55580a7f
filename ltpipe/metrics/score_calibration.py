"""Calibrate the scores of finished detections: every class, frequency group or all of them get a function of the score.

No model is needed. A function that does not fall keeps the order inside its class, so AP-fixed stays (but for ties) and
AP-pool shows what was gained; AP changes where other detections take the places of an image. Source: Dave et al.,
arXiv 2102.01066, ``achalddave/large-vocab-devil``.

Fit on images that the detector was not trained on, and judge on others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore
from ltpipe.errors import unknown_name
from ltpipe.metrics.confidence import BINS
from ltpipe.metrics.contract import select
from ltpipe.metrics.matched_overlaps import matched_overlaps
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.score_functions import FUNCTIONS, PRIOR, NoOptimum, ScoreFunction
from ltpipe.metrics.tensors import IouType, Protocol

Grouping = Literal["overall", "frequency", "class"]
Policy = Literal["zero", "keep", "by-frequency"]
GROUPINGS: tuple[Grouping, ...] = ("overall", "frequency", "class")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """Detections that are known to be right or wrong.

    Attributes:
        rows: ``(n,)`` rows of the predictions, ascending.
        category_ids: ``(n,)``.
        scores: ``(n,) float64``.
        right: ``(n,) bool``.
    """

    rows: Ints
    category_ids: Ints
    scores: Floats
    right: Flags


def label(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    threshold: float,
    *,
    protocol: Protocol | None = None,
    ignored: Literal["drop", "count"] = "drop",
) -> Labelled:
    """Tell which detections are right; those of categories that an image says nothing about are left out.

    Args:
        gt: Annotations.
        predictions: Detections; there is no limit per image.
        iou_type: ``bbox`` or ``segm``.
        threshold: Least IoU of a right detection.
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        ignored: Detections that find nothing where the image may show more of their category than was annotated are
            left out (``drop``) or wrong (``count``, as in the published code).
    """
    selection = select(gt, predictions, iou_type, protocol=protocol, max_detections=-1)
    found = matched_overlaps(selection, threshold, partial=ignored == "drop")
    rows, right = selection.dets[~found.ignored], found.overlap[~found.ignored] >= 0
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    return Labelled(rows, predictions.category_ids[rows], predictions.scores[rows].astype(np.float64), right[order])


@dataclass(frozen=True)
class ScoreCalibration:
    """Functions of the score.

    Attributes:
        of_class: By category id; None: scores stay.
        of_group: By frequency group.
        overall: For categories that nothing else is known of.
        frequency: Group by category id.
        method: Name in :data:`~ltpipe.metrics.score_functions.FUNCTIONS`.
    """

    of_class: Mapping[int, ScoreFunction | None]
    of_group: Mapping[str, ScoreFunction]
    overall: ScoreFunction
    frequency: Mapping[int, str]
    method: str

    def apply(self, category_ids: Ints, scores: NDArray[np.floating]) -> Floats:
        """Return calibrated scores ``(D,) float64`` of detections."""
        calibrated = np.asarray(scores, np.float64).copy()
        order = np.argsort(category_ids, kind="stable")
        ids, starts = np.unique(category_ids[order], return_index=True)
        for category, rows in zip(ids.tolist(), np.split(order, starts[1:]), strict=True):
            function = self.function(category)
            if function is not None and len(rows):
                # Equal scores stay equal: sums of arrays round differently from place to place.
                values, places = np.unique(calibrated[rows], return_inverse=True)
                calibrated[rows] = function(values)[places]
        return calibrated

    def function(self, category: int) -> ScoreFunction | None:
        """Return the function of a category."""
        if category in self.of_class:
            return self.of_class[category]
        return self.of_group.get(self.frequency.get(category, ""), self.overall)


def fit_scores(
    labelled: Labelled,
    frequency: Mapping[int, str],
    method: str,
    *,
    grouping: Grouping = "class",
    missing: Policy = "by-frequency",
    never_right: Policy = "by-frequency",
    bins: int = BINS,
) -> ScoreCalibration:
    """Fit functions of the score.

    Args:
        labelled: Detections of held-out images.
        frequency: ``r``, ``c`` or ``f`` by category id; other categories share the function of all.
        method: ``histogram``, ``isotonic``, ``platt``, ``temperature`` or ``beta``.
        grouping: One function for all categories (``overall``), one per frequency group, or one per category.
        missing: Categories without labelled detections get the score 0, keep theirs, or share their group's function.
        never_right: Likewise categories whose detections are all wrong.
        bins: Of the method ``histogram``.

    Raises:
        UserError: No such method or grouping.
    """
    if method not in FUNCTIONS:
        raise unknown_name("score calibration", method, FUNCTIONS)
    if grouping not in GROUPINGS:
        raise unknown_name("grouping of score calibration", grouping, GROUPINGS)
    overall = _fit_always(method, bins, labelled.scores, labelled.right)
    letters = np.array([frequency.get(category, "") for category in labelled.category_ids.tolist()], object)
    groups = {}
    if grouping != "overall":
        for letter in sorted(set(letters.tolist()) - {""}):
            own = letters == letter
            groups[letter] = _fit_always(method, bins, labelled.scores[own], labelled.right[own])
    fitted = ScoreCalibration({}, groups, overall, frequency, method)
    if grouping != "class":
        return fitted
    # Categories that nobody labelled are known by their names alone.
    policies: dict[int, Policy] = dict.fromkeys(frequency, missing)
    functions: dict[int, ScoreFunction | None] = {}
    for category in np.unique(labelled.category_ids).tolist():
        own = labelled.category_ids == category
        policies[category] = "by-frequency"
        if not labelled.right[own].any():
            policies[category] = never_right
            continue
        try:
            functions[category] = FUNCTIONS[method](bins, 0.0)(labelled.scores[own], labelled.right[own])
        except NoOptimum:
            continue  # no finite optimum: the group's function
    simple: dict[Policy, ScoreFunction | None] = {"zero": np.zeros_like, "keep": None}
    functions |= {category: simple[policy] for category, policy in policies.items() if policy in simple}
    return replace(fitted, of_class=functions)


def _fit_always(method: str, bins: int, scores: Floats, right: Flags) -> ScoreFunction:
    """Fit a function; where there is no optimum, with a weak prior around the scores as they are."""
    if not len(scores):
        return lambda new: new
    try:
        return FUNCTIONS[method](bins, 0.0)(scores, right)
    except NoOptimum:
        return FUNCTIONS[method](bins, PRIOR)(scores, right)


def ranked(calibrated: Floats, original: NDArray[np.floating]) -> Floats:
    """Return scores in the order of ``(calibrated, original)``, for evaluations that ask for the order alone.

    Calibration makes equal scores of different ones; the originals then decide. All ``(D,)``; ranks count from 1.
    """
    order = np.lexsort((original, calibrated))
    both = np.stack([calibrated[order], np.asarray(original, np.float64)[order]])
    steps = np.concatenate([[1], (np.diff(both, axis=1) != 0).any(axis=0)]) if len(order) else np.zeros(0)
    ranks = np.empty(len(order))
    ranks[order] = np.cumsum(steps)
    return ranks

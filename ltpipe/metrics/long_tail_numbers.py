"""All numbers of one set of detections: AP, AP-fixed and AP-pool, what each kind of error costs, and how sure AP is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore
from ltpipe.frequency import BIN_EDGES, FREQUENCY_NAMES
from ltpipe.metrics.confidence import Confidence, measure_confidence
from ltpipe.metrics.error_costs import Costs, error_costs
from ltpipe.metrics.error_kinds import Errors, find_errors
from ltpipe.metrics.evaluation import evaluate, evaluate_matched
from ltpipe.metrics.fixed_ap import PER_CATEGORY, FixedAP, fixed_ap
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.resampled_ap import resample
from ltpipe.metrics.resamples import Resamples
from ltpipe.metrics.table import per_class_table, summarize
from ltpipe.metrics.tensors import IouType, Protocol, Tensors

PAIR = ("meant_id", "meant", "taken_for_id", "taken_for", "count")
"""Columns of a list of confusions."""


class Numbers(NamedTuple):
    """What one set of detections gives; of boundaries there is nothing but precision and recall.

    Attributes:
        tensors: Precision and recall.
        fixed: AP with limits per category.
        costs: What each kind of error costs.
        confusions: ``count`` objects of class ``meant`` are taken for ``taken_for``, columns :data:`PAIR`.
        resamples: The numbers on resamples of the images; None if they were not asked for.
        confidence: How far scores are from what they promise; None if they are no probabilities.
    """

    tensors: Tensors
    fixed: FixedAP | None = None
    costs: Costs | None = None
    confusions: pd.DataFrame | None = None
    resamples: Resamples | None = None
    confidence: Confidence | None = None

    def of(
        self, classes: pd.DataFrame, *, bins: Sequence[float] = BIN_EDGES, phase: int | None = None
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """Return the numbers of the whole set and those class by class, see :mod:`~ltpipe.metrics.table`.

        The former have ``intervals`` as well: ``{metric: [low, high]}``, and ``reliability``: by group and bin of the
        score how many detections there are, their mean score and the share of right ones.
        """
        more: dict[str, Any] = {"fixed": self.fixed, "costs": self.costs, "confidence": self.confidence}
        metrics = summarize(self.tensors, classes, bins=bins, phase=phase, **more)
        if self.resamples is not None:
            metrics["intervals"] = {key: self.resamples.interval(key, metrics[key]) for key in self.resamples.values}
        if self.confidence is not None:
            metrics["reliability"] = {name: one.diagram() for name, one in self.confidence.groups.items()}
        return metrics, per_class_table(self.tensors, classes, **more)


def measure(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    classes: pd.DataFrame,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
    category_ids: NDArray[np.int64] | None = None,
    per_category: int = PER_CATEGORY,
    unlimited: Predictions | None = None,
    resamples: bool = True,
    confidences: NDArray[np.floating] | None = None,
) -> Numbers:
    """Measure everything.

    Args:
        gt: Annotations.
        predictions: Detections.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        classes: ``category_id`` and ``frequency`` of all categories.
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        max_detections: Default: 300 per image (LVIS), 100 per image and category (COCO); the error kinds take it per
            image, over all categories.
        category_ids: Evaluate only these, e.g. the classes a phase knows.
        per_category: Detections per category for AP-fixed and AP-pool.
        unlimited: Detections for AP-fixed and AP-pool, made without a limit per image; None: the same.
        resamples: Whether AP is computed on resamples of the images.
        confidences: ``(D,)`` scores that promise something; None: those of the detections, which otherwise order them.
    """
    options: dict[str, Any] = {"protocol": protocol, "max_detections": max_detections}
    if iou_type == "boundary":
        return Numbers(evaluate(gt, predictions, iou_type, category_ids=category_ids, **options))
    tensors, selection, matches = evaluate_matched(gt, predictions, iou_type, category_ids=category_ids, **options)
    drawn = resample(selection, matches, classes) if resamples else None
    del matches
    confidence = measure_confidence(selection, predictions.scores if confidences is None else confidences, classes)
    del selection
    ids = tensors.category_ids
    groups = {letter: classes["category_id"][classes["frequency"] == letter].tolist() for letter in FREQUENCY_NAMES}
    fixed = fixed_ap(
        gt,
        predictions if unlimited is None else unlimited,
        iou_type,
        pools={"all": ids.tolist()} | groups,
        per_category=per_category,
        protocol=protocol,
        category_ids=ids,
    )
    errors = find_errors(gt, predictions, iou_type, **options)
    costs = error_costs(errors).only(np.isin(errors.category_ids, ids))
    return Numbers(tensors, fixed, costs, confusions(errors, gt), drawn, confidence)


def confusions(errors: Errors, gt: AnnotationStore) -> pd.DataFrame:
    """Return which classes are taken for which others, most often first, columns :data:`PAIR`."""
    names = dict(zip(gt.category_ids.tolist(), gt.category_names, strict=True))
    taken, meant, count = (column.tolist() for column in errors.confusions())
    columns = meant, [names[one] for one in meant], taken, [names[one] for one in taken], count
    return pd.DataFrame(dict(zip(PAIR, columns, strict=True)))

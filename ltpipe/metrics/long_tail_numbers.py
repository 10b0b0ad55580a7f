"""All numbers of one set of detections: AP, AP-fixed and AP-pool, what each kind of error costs, and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore
from ltpipe.frequency import BIN_EDGES, FREQUENCY_NAMES
from ltpipe.metrics.error_costs import Costs, error_costs
from ltpipe.metrics.error_kinds import Errors, find_errors
from ltpipe.metrics.fixed_ap import FixedAP, fixed_ap
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.table import per_class_table, summarize
from ltpipe.metrics.tensors import Protocol, Tensors

PAIR = ("meant_id", "meant", "taken_for_id", "taken_for", "count")
"""Columns of a list of confusions."""


class Further(NamedTuple):
    """What is measured beside precision and recall; boundaries have none of it.

    Attributes:
        fixed: AP with limits per category.
        costs: What each kind of error costs.
        confusions: ``count`` objects of class ``meant`` were taken for ``taken_for``, columns :data:`PAIR`.
    """

    fixed: FixedAP
    costs: Costs
    confusions: pd.DataFrame


def measure_further(
    gt: AnnotationStore,
    predictions: Predictions,
    tensors: Tensors,
    classes: pd.DataFrame,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
) -> Further | None:
    """Measure what :func:`~ltpipe.metrics.evaluation.evaluate` does not.

    Args:
        gt: Annotations.
        predictions: Detections.
        tensors: What they gave; says which categories count, and on what they are measured.
        classes: ``category_id``, ``name`` and ``frequency`` of all categories.
        protocol: As for the tensors.
        max_detections: Per image, over all categories, for the error kinds; default: those of TIDE.

    Returns:
        None for boundaries.
    """
    kind, ids = tensors.info.iou_type, tensors.category_ids
    if kind == "boundary":
        return None
    groups = {letter: classes["category_id"][classes["frequency"] == letter].tolist() for letter in FREQUENCY_NAMES}
    pools = {"all": ids.tolist()} | groups
    fixed = fixed_ap(gt, predictions, kind, pools=pools, protocol=protocol, category_ids=ids)
    errors = find_errors(gt, predictions, kind, protocol=protocol, max_detections=max_detections)
    return Further(fixed, error_costs(errors).only(np.isin(errors.category_ids, ids)), confusions(errors, classes))


def confusions(errors: Errors, classes: pd.DataFrame) -> pd.DataFrame:
    """Return which classes are taken for which others, most often first, columns :data:`PAIR`."""
    names = classes.set_index("category_id")["name"]
    taken, meant, count = errors.confusions()

    def name(ids: NDArray[np.int64]) -> list[str]:
        return [str(one) for one in names.reindex(ids)]

    return pd.DataFrame(dict(zip(PAIR, (meant, name(meant), taken, name(taken), count), strict=True)))


def summarize_all(
    tensors: Tensors,
    classes: pd.DataFrame,
    further: Further | None,
    *,
    bins: Sequence[float] = BIN_EDGES,
    phase: int | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return all numbers: those of the whole set and those class by class; see :mod:`~ltpipe.metrics.table`."""
    more: dict[str, Any] = {} if further is None else {"fixed": further.fixed, "costs": further.costs}
    metrics = summarize(tensors, classes, bins=bins, phase=phase, **more)
    return metrics, per_class_table(tensors, classes, **more)

"""What numbers are computed from, and how: the pieces that rows of :mod:`~ltpipe.metrics.table` are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.frequency import BIN_EDGES
from ltpipe.metrics.class_groups import Number, bin_metrics, plain_mean
from ltpipe.metrics.tensors import AREAS, IOU_THRESHOLDS, Tensors

if TYPE_CHECKING:  # they load the engine, which who only shows numbers does without
    from ltpipe.metrics.confidence import Confidence
    from ltpipe.metrics.error_costs import Costs
    from ltpipe.metrics.fixed_ap import FixedAP

Cells = Callable[[Tensors], NDArray[np.float64]]
Value = Callable[["Measured"], Number]
OfClasses = Callable[["Measured"], NDArray[np.float64]]


@dataclass(frozen=True)
class Measured:
    """One checkpoint, measured on boxes, masks or boundaries: what the rows compute numbers from.

    Attributes:
        tensors: Precision and recall of ``K`` categories.
        classes: ``K`` rows in the order of the tensors' categories, columns :data:`~ltpipe.metrics.table.FACTS`.
        edges: Ascending edges of the bins, in training instances.
        phase: The checkpoint's phase, None if it has none.
        fixed: AP with limits per category, of the same categories; None: not measured.
        costs: What each kind of error costs, likewise.
        confidence: How far scores are from what they promise, likewise.
    """

    tensors: Tensors
    classes: pd.DataFrame
    edges: Sequence[float] = BIN_EDGES
    phase: int | None = None
    fixed: FixedAP | None = None
    costs: Costs | None = None
    confidence: Confidence | None = None

    @cached_property
    def ap(self) -> NDArray[np.float64]:
        """``(K,) float64`` AP per class, NaN where not evaluated."""
        return _class_means(precision()(self.tensors))

    def members(self, frequency: str | None) -> NDArray[np.bool_]:
        """Return ``(K,)``: the classes of a frequency group, or all."""
        letters = self.classes["frequency"].to_numpy()
        return np.ones(len(letters), bool) if frequency is None else np.asarray(letters == frequency, bool)

    @cached_property
    def binned(self) -> dict[str, Any]:
        """What :func:`~ltpipe.metrics.class_groups.bin_metrics` returns; no bins without training counts."""
        counts = self.classes["train_instances"]
        if counts.isna().any():
            return {"bins": [], "bAP": None, "bAP_complete": False}
        return bin_metrics(self.ap, counts.to_numpy(), self.edges)


def precision(iou: float | None = None, area: str = "all") -> Cells:
    """Return what gives the cells ``(n, K)`` of precision at one IoU threshold or all, for one object size."""
    levels = range(len(IOU_THRESHOLDS)) if iou is None else [int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))]
    index = AREAS.index(area)
    return lambda tensors: _flat(tensors.precision[levels, :, :, index])


def recall(area: str = "all") -> Cells:
    """Return what gives the cells ``(T, K)`` of recall for one object size."""
    index = AREAS.index(area)
    return lambda tensors: _flat(tensors.recall[:, :, index])


def mean(cells: Cells, frequency: str | None = None) -> Value:
    """Return what averages cells over all evaluated classes, or those of one frequency group."""

    def value(measured: Measured) -> Number:
        found = cells(measured.tensors)
        if frequency is not None:
            found = found[:, measured.members(frequency)]
        return plain_mean(found[found > -1])

    return value


def by_class(cells: Cells) -> OfClasses:
    """Return what averages cells per class."""
    return lambda measured: _class_means(cells(measured.tensors))


def fixed(frequency: str | None = None) -> Value:
    """Return what averages AP-fixed over all evaluated classes, or those of one frequency group."""

    def value(measured: Measured) -> Number:
        assert measured.fixed is not None
        found = _flat(measured.fixed.precision[..., 0])[:, measured.members(frequency)]
        return plain_mean(found[found > -1])

    return value


def pooled(pool: str) -> Value:
    """Return what gives AP-pool of one pool."""

    def value(measured: Measured) -> Number:
        assert measured.fixed is not None
        cells = measured.fixed.pooled[pool][0]
        return plain_mean(cells[cells > -1])

    return value


def cost(kind: str, frequency: str | None = None) -> Value:
    """Return what gives the cost of a kind of error, in AP50 of all classes or of a frequency group."""

    def value(measured: Measured) -> Number:
        assert measured.costs is not None
        return measured.costs.of(measured.members(frequency))[kind]

    return value


def pooled_error(group: str) -> Value:
    """Return what gives the distance of score and precision, of the detections of all classes or of a group."""

    def value(measured: Measured) -> Number:
        assert measured.confidence is not None
        error = measured.confidence.groups[group].error
        return error if np.isfinite(error) else None

    return value


def laece(frequency: str | None = None) -> Value:
    """Return what gives the mean distance of score and IoU, over all classes or those of a frequency group."""

    def value(measured: Measured) -> Number:
        assert measured.confidence is not None
        errors = measured.confidence.localization[measured.members(frequency)]
        return plain_mean(errors[np.isfinite(errors)])

    return value


def errors_by_class(measured: Measured) -> NDArray[np.float64]:
    """Return the distance of score and precision per class."""
    assert measured.confidence is not None
    return measured.confidence.of_class


def laece_by_class(measured: Measured) -> NDArray[np.float64]:
    """Return the distance of score and IoU per class."""
    assert measured.confidence is not None
    return measured.confidence.localization


def fixed_by_class(measured: Measured) -> NDArray[np.float64]:
    """Return AP-fixed per class."""
    assert measured.fixed is not None
    return _class_means(_flat(measured.fixed.precision[..., 0]))


def cost_by_class(kind: str) -> OfClasses:
    """Return what gives the cost of a kind of error per class."""

    def gains(measured: Measured) -> NDArray[np.float64]:
        assert measured.costs is not None
        return measured.costs.by_class(kind)

    return gains


def _flat(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(..., K)`` as ``(n, K)``."""
    return np.ascontiguousarray(cells.reshape(-1, cells.shape[-1]))


def _class_means(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(K,)`` means over the valid entries of ``(n, K)``; NaN where a class has none."""
    flat = np.ascontiguousarray(cells.T)
    valid = flat > -1
    count = valid.sum(axis=1)
    total = np.where(valid, flat, 0.0).sum(axis=1)
    means: NDArray[np.float64] = np.divide(total, count, out=np.full(len(flat), np.nan), where=count > 0)
    return means

"""The table of reported numbers: a row is one number, its name, how it is computed, and where it is shown.

``metrics.json``, ``per_class.csv``, ``summary.csv`` and the page are made from :data:`METRICS`; to report another
number, add a row. ``AP_c`` of a category is the mean of its precision over all IoU thresholds and recall levels; an
entry of -1 (no ground truth) does not count, and a category without any entry is *not evaluated*. A group of categories
has the mean of its evaluated members. Groups are formed by counts of the **training** set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.frequency import BIN_EDGES, FREQUENCY_LIMITS, FREQUENCY_NAMES
from ltpipe.metrics.class_groups import Number, bin_metrics, phase_groups, plain_mean
from ltpipe.metrics.tensors import AREAS, IOU_THRESHOLDS, IOU_TYPES, IouType, Tensors

COUNTS = {"image_count": "train_images", "instance_count": "train_instances"}
FACTS = ("category_id", "name", "frequency", *COUNTS.values(), "phase")
"""Columns of the table of classes in front of the numbers."""
Section = Literal["overview", "groups", "bins", "sweep"]
Format = Literal["percent", "flag", "bins", "phases"]
Cells = Callable[[Tensors], NDArray[np.float64]]


@dataclass(frozen=True)
class Measured:
    """One checkpoint, measured on boxes, masks or boundaries: what the rows compute numbers from.

    Attributes:
        tensors: Precision and recall of ``K`` categories.
        classes: ``K`` rows in the order of the tensors' categories, columns :data:`FACTS`.
        edges: Ascending edges of the bins, in training instances.
        phase: The checkpoint's phase, None if it has none.
    """

    tensors: Tensors
    classes: pd.DataFrame
    edges: Sequence[float] = BIN_EDGES
    phase: int | None = None

    @cached_property
    def ap(self) -> NDArray[np.float64]:
        """``(K,) float64`` AP per class, NaN where not evaluated."""
        return _class_means(precision()(self.tensors))

    @cached_property
    def binned(self) -> dict[str, Any]:
        """What :func:`~ltpipe.metrics.class_groups.bin_metrics` returns; no bins without training counts."""
        counts = self.classes["train_instances"]
        if counts.isna().any():
            return {"bins": [], "bAP": None, "bAP_complete": False}
        return bin_metrics(self.ap, counts.to_numpy(), self.edges)


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        key: Name in ``metrics.json``, column of the CSV files, heading in the page.
        title: What it is about, in a word or two, e.g. ``rare classes``.
        meaning: Definition, for the terms of the page; neighbours with the same one share an entry.
        value: Computes it; None where there is nothing to be measured.
        of_classes: Computes ``(K,) float64``, NaN where not evaluated, for ``per_class.csv``; None: no column.
        sections: Tables and figures of the page that show it.
        format: ``percent``, a fraction of 1; ``flag``, which is no number; ``bins`` and ``phases``: groups of classes
            that the data set makes, each with a number of its own, see :mod:`~ltpipe.metrics.class_groups`.
        iou_types: On what it is measured.
    """

    key: str
    title: str
    meaning: str
    value: Callable[[Measured], Any]
    of_classes: Callable[[Measured], NDArray[np.float64]] | None = None
    sections: tuple[Section, ...] = ()
    format: Format = "percent"
    iou_types: tuple[IouType, ...] = IOU_TYPES


def precision(iou: float | None = None, area: str = "all") -> Cells:
    """Return what gives the cells ``(n, K)`` of precision at one IoU threshold or all, for one object size."""
    levels = range(len(IOU_THRESHOLDS)) if iou is None else [int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))]
    index = AREAS.index(area)
    return lambda tensors: _flat(tensors.precision[levels, :, :, index])


def recall(area: str = "all") -> Cells:
    """Return what gives the cells ``(T, K)`` of recall for one object size."""
    index = AREAS.index(area)
    return lambda tensors: _flat(tensors.recall[:, :, index])


def mean(cells: Cells, frequency: str | None = None) -> Callable[[Measured], Number]:
    """Return what averages cells over all evaluated classes, or those of one frequency group."""

    def value(measured: Measured) -> Number:
        found = cells(measured.tensors)
        if frequency is not None:
            found = found[:, measured.classes["frequency"].to_numpy() == frequency]
        return plain_mean(found[found > -1])

    return value


def by_class(cells: Cells) -> Callable[[Measured], NDArray[np.float64]]:
    """Return what averages cells per class."""
    return lambda measured: _class_means(cells(measured.tensors))


_AP50_75 = "The same at one overlap threshold: 0.50 (roughly right) and 0.75 (well placed)."
_SIZES = "AP of small (below 32 x 32 pixels), medium and large (above 96 x 96 pixels) objects."
_FREQUENCY = (
    "AP of the rare, common and frequent classes. The groups count training images, not validation images: up to "
    f"{FREQUENCY_LIMITS[0]}, up to {FREQUENCY_LIMITS[1]}, and more in LVIS."
)
_RECALL = (
    "Average recall: the share of objects found, averaged over the same thresholds and classes, with the stated number "
    "of detections per image; ARs, ARm, ARl: of small, medium and large objects."
)
_BINS = (
    "Mean of the AP of the bins over training instances; every bin weighs the same, however few classes it has. Marked "
    "with * when a bin has no class with ground truth and is left out."
)
SIZES = {"s": "small", "m": "medium", "l": "large"}
METRICS: tuple[Metric, ...] = (
    Metric(
        "AP",
        "all classes",
        "Average precision: area under the precision-recall curve of a class, averaged over the overlap thresholds "
        "0.50, 0.55, ..., 0.95 and then over the classes that have ground truth in the validation set.",
        mean(precision()),
        by_class(precision()),
        ("overview", "groups", "sweep"),
    ),
    Metric("AP50", "overlap 0.50", _AP50_75, mean(precision(0.5)), by_class(precision(0.5)), ("overview", "sweep")),
    Metric("AP75", "overlap 0.75", _AP50_75, mean(precision(0.75)), sections=("overview",)),
    *(
        Metric(f"AP{size}", f"{name} objects", _SIZES, mean(precision(area=size)), sections=("overview",))
        for size, name in SIZES.items()
    ),
    *(
        Metric(f"AP{letter}", name, _FREQUENCY, mean(precision(), letter), sections=("overview", "groups", "sweep"))
        for letter, name in FREQUENCY_NAMES.items()
    ),
    Metric("AR", "recall", _RECALL, mean(recall()), by_class(recall()), ("overview",)),
    *(Metric(f"AR{size}", f"recall, {name} objects", _RECALL, mean(recall(size))) for size, name in SIZES.items()),
    Metric("bins", "bins", "", lambda measured: measured.binned["bins"], format="bins"),
    Metric("bAP", "mean of the bins", _BINS, lambda measured: measured.binned["bAP"], sections=("bins", "sweep")),
    Metric("bAP_complete", "no bin is empty", "", lambda measured: measured.binned["bAP_complete"], format="flag"),
    Metric(
        "groups",
        "phases",
        "",
        lambda measured: phase_groups(measured.ap, measured.classes["phase"], measured.phase),
        format="phases",
    ),
)


def rows_in(section: Section) -> list[Metric]:
    """Return the rows that a table or figure of the page shows."""
    return [row for row in METRICS if section in row.sections]


def meanings() -> dict[str, str]:
    """Return what the numbers mean; those that are defined together share a line, ``"AP50, AP75"``."""
    alike = groupby((row for row in METRICS if row.meaning), lambda row: row.meaning)
    return {", ".join(row.key for row in rows): meaning for meaning, rows in alike}


def per_class_table(tensors: Tensors, classes: pd.DataFrame) -> pd.DataFrame:
    """Return one row per evaluated category with its numbers, NaN where it has no ground truth.

    Args:
        tensors: ``K`` categories.
        classes: Statistics of the training set, a superset of these categories in any order, as
            :func:`ltpipe.data.statistics.class_statistics` returns them; a column ``phase`` (the phase that introduces
            the class, 0 for base classes) is optional.

    Returns:
        ``K`` rows in the order of ``tensors.category_ids``: columns :data:`FACTS`, then those of the rows of
        :data:`METRICS` that are known class by class.

    Raises:
        UserError: A category has no training statistics.
    """
    measured = Measured(tensors, _facts(tensors, classes))
    numbers = {row.key: row.of_classes(measured) for row in _rows(tensors) if row.of_classes is not None}
    return measured.classes.assign(**numbers)


def summarize(
    tensors: Tensors,
    classes: pd.DataFrame,
    *,
    bins: Sequence[float] = BIN_EDGES,
    phase: int | None = None,
) -> dict[str, Any]:
    """Compute every number reported for one checkpoint and one IoU type; all are fractions of 1, None is "no class".

    Args:
        tensors: Precision and recall.
        classes: Statistics of the training set, as for :func:`per_class_table`.
        bins: Ascending edges of the bins, in training instances.
        phase: The checkpoint's phase; adds the groups ``old`` (earlier phases) and ``new`` (this one).

    Returns:
        The rows of :data:`METRICS`, the number of ``evaluated_classes``, and the fields of
        :class:`~ltpipe.metrics.tensors.TensorInfo`.

    Raises:
        UserError: Edges that do not ascend, or a category without training statistics.
    """
    measured = Measured(tensors, _facts(tensors, classes), bins, phase)
    info = tensors.info
    return {
        **{row.key: row.value(measured) for row in _rows(tensors)},
        "evaluated_classes": int(np.isfinite(measured.ap).sum()),
        "iou_type": info.iou_type,
        "protocol": info.protocol,
        "max_detections": info.max_detections,
        "engine": info.engine,
        "counts": info.counts,
        **({} if info.boundary_ratio is None else {"boundary_ratio": info.boundary_ratio}),
    }


def flatten(metrics: Mapping[str, Any]) -> dict[str, Number]:
    """Return the numbers of :func:`summarize` under flat names: ``AP``, ..., ``bAP``, ``bin/10-100``, ``group/t1``."""
    flat: dict[str, Number] = {}
    groups: dict[str, Number] = {}
    for row in METRICS:
        value = metrics.get(row.key)
        if row.format == "percent" and row.key in metrics:
            flat[row.key] = value
        elif row.format == "bins":
            groups |= {f"bin/{item['label']}": item["AP"] for item in value or ()}
        elif row.format == "phases":
            groups |= {f"group/{name}": item["AP"] for name, item in (value or {}).items()}
    return flat | groups


def _rows(tensors: Tensors) -> list[Metric]:
    return [row for row in METRICS if tensors.info.iou_type in row.iou_types]


def _facts(tensors: Tensors, classes: pd.DataFrame) -> pd.DataFrame:
    """Return what is known of each evaluated category, columns :data:`FACTS`."""
    rows = pd.Index(classes["category_id"]).get_indexer(tensors.category_ids)
    if (rows < 0).any():
        raise UserError("category without training statistics", got=tensors.category_ids[rows < 0][:5].tolist())
    table = classes.iloc[rows].reset_index(drop=True).rename(columns=COUNTS)
    if "phase" not in table:
        table["phase"] = pd.array([None] * len(table), "Int64")
    return table[list(FACTS)]


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

"""The table of reported numbers: a row is one number, its name, how it is computed, and where it is shown.

``metrics.json``, ``per_class.csv``, ``summary.csv`` and the page are made from :data:`METRICS`; to report another
number, add a row. ``AP_c`` of a category is the mean of its precision over all IoU thresholds and recall levels; an
entry of -1 (no ground truth) does not count, and a category without any entry is *not evaluated*. A group of categories
has the mean of its evaluated members. Groups are formed by counts of the **training** set.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ltpipe.data.id_rows import row_of
from ltpipe.errors import UserError
from ltpipe.frequency import BIN_EDGES, FREQUENCY_LIMITS, FREQUENCY_NAMES
from ltpipe.metrics.class_groups import Number, phase_groups
from ltpipe.metrics.error_names import KINDS, SPECIAL
from ltpipe.metrics.measured import (
    Measured,
    OfClasses,
    by_class,
    cost,
    cost_by_class,
    errors_by_class,
    fixed,
    fixed_by_class,
    laece,
    laece_by_class,
    mean,
    pooled,
    pooled_error,
    precision,
    recall,
)
from ltpipe.metrics.tensors import IOU_TYPES, IouType, Tensors

if TYPE_CHECKING:  # they load the engine, which who only shows numbers does without
    from ltpipe.metrics.confidence import Confidence
    from ltpipe.metrics.error_costs import Costs
    from ltpipe.metrics.fixed_ap import FixedAP

COUNTS = {"image_count": "train_images", "instance_count": "train_instances"}
FACTS = ("category_id", "name", "frequency", *COUNTS.values(), "phase")
"""Columns of the table of classes in front of the numbers."""
Section = Literal["overview", "groups", "bins", "sweep", "limits", "confidence"]
Format = Literal["percent", "points", "error", "flag", "bins", "phases"]


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
        format: ``percent``, a fraction of 1; ``points``, a difference of such; ``error``, a distance, the
            smaller the better; ``flag``, which is no number; ``bins``
            and ``phases``: groups of classes that the data set makes, each with a number of its own, see
            :mod:`~ltpipe.metrics.class_groups`.
        iou_types: On what it is measured.
        needs: What has to be measured for it, an attribute of :class:`Measured` that may be None.
    """

    key: str
    title: str
    meaning: str
    value: Callable[[Measured], Any]
    of_classes: OfClasses | None = None
    sections: tuple[Section, ...] = ()
    format: Format = "percent"
    iou_types: tuple[IouType, ...] = IOU_TYPES
    needs: Literal["tensors", "fixed", "costs", "confidence"] = "tensors"


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
_FIXED = (
    "AP with the best 10,000 detections of every class in the whole set and no limit per image, so that classes do not "
    "compete for places (AP-fixed); APr_fixed, APc_fixed, APf_fixed: of the frequency groups. A detector that was "
    "itself limited per image is underestimated."
)
_POOL = (
    "AP of the detections of all classes, or of a frequency group, in one curve (AP-pool): high only if scores mean "
    "the same for every class. Frequent classes weigh more."
)
_COST = (
    "What AP50 would gain if all errors of a kind were mended and nothing else (TIDE), in percent points; the gains do "
    "not add up. " + "; ".join(f"{kind}: {title}" for kind, title in (KINDS | SPECIAL).items()) + "."
)
_DECE = (
    "Distance of the scores from the share of right detections (IoU of at least 0.5), over 20 bins of the score (arXiv "
    "2405.20459); D-ECE_r, D-ECE_c, D-ECE_f: of the frequency groups. 0: scores are probabilities."
)
_LAECE = (
    "Distance of the scores from the IoU with the object that is found, 0 where none is, mean over the classes "
    "(likewise). A detection whose box is loose is over-confident here, too."
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
    Metric("AP_fixed", "limits per class", _FIXED, fixed(), fixed_by_class, ("limits",), needs="fixed"),
    *(
        Metric(
            f"AP{letter}_fixed", f"{name}, limits per class", _FIXED, fixed(letter), None, ("limits",), needs="fixed"
        )
        for letter, name in FREQUENCY_NAMES.items()
    ),
    Metric("AP_pool", "one curve", _POOL, pooled("all"), None, ("limits",), needs="fixed"),
    *(
        Metric(f"AP{letter}_pool", f"one curve, {name}", _POOL, pooled(letter), None, ("limits",), needs="fixed")
        for letter, name in FREQUENCY_NAMES.items()
    ),
    *(
        Metric(f"dAP_{kind}", title, _COST, cost(kind), cost_by_class(kind), (), "points", needs="costs")
        for kind, title in (KINDS | SPECIAL).items()
    ),
    *(
        Metric(f"dAP_{kind}_{letter}", f"{title}, {name}", "", cost(kind, letter), format="points", needs="costs")
        for letter, name in FREQUENCY_NAMES.items()
        for kind, title in KINDS.items()
    ),
    *(
        Metric(key, title, meaning, value, per_class, ("confidence",), "error", needs="confidence")
        for key, title, meaning, value, per_class in (
            ("D-ECE", "scores and precision", _DECE, pooled_error("all"), errors_by_class),
            *(
                (f"D-ECE_{letter}", f"scores and precision, {name}", _DECE, pooled_error(letter), None)
                for letter, name in FREQUENCY_NAMES.items()
            ),
            ("LaECE0", "scores and IoU", _LAECE, laece(), laece_by_class),
            *(
                (f"LaECE0_{letter}", f"scores and IoU, {name}", _LAECE, laece(letter), None)
                for letter, name in FREQUENCY_NAMES.items()
            ),
        )
    ),
)


def rows_in(section: Section) -> list[Metric]:
    """Return the rows that a table or figure of the page shows."""
    return [row for row in METRICS if section in row.sections]


def meanings(shown: Container[str]) -> dict[str, str]:
    """Return what some numbers mean; those that are defined together share a line, ``"AP50, AP75"``."""
    alike = groupby((row for row in METRICS if row.meaning and row.key in shown), lambda row: row.meaning)
    return {", ".join(row.key for row in rows): meaning for meaning, rows in alike}


def per_class_table(
    tensors: Tensors,
    classes: pd.DataFrame,
    *,
    fixed: FixedAP | None = None,
    costs: Costs | None = None,
    confidence: Confidence | None = None,
) -> pd.DataFrame:
    """Return one row per evaluated category with its numbers, NaN where it has no ground truth.

    Args:
        tensors: ``K`` categories.
        classes: Statistics of the training set, a superset of these categories in any order, as
            :func:`ltpipe.data.statistics.class_statistics` returns them; a column ``phase`` (the phase that introduces
            the class, 0 for base classes) is optional.
        fixed: AP with limits per category, if it was measured.
        costs: What each kind of error costs, likewise.
        confidence: How far scores are from what they promise, likewise.

    Returns:
        ``K`` rows in the order of ``tensors.category_ids``: columns :data:`FACTS`, then those of the rows of
        :data:`METRICS` that are known class by class.

    Raises:
        UserError: A category has no training statistics.
    """
    measured = Measured(tensors, _facts(tensors, classes), fixed=fixed, costs=costs, confidence=confidence)
    numbers = {row.key: row.of_classes(measured) for row in _rows(measured) if row.of_classes is not None}
    return measured.classes.assign(**numbers)


def summarize(
    tensors: Tensors,
    classes: pd.DataFrame,
    *,
    bins: Sequence[float] = BIN_EDGES,
    phase: int | None = None,
    fixed: FixedAP | None = None,
    costs: Costs | None = None,
    confidence: Confidence | None = None,
) -> dict[str, Any]:
    """Compute every number reported for one checkpoint and one IoU type; all are fractions of 1, None is "no class".

    Args:
        tensors: Precision and recall.
        classes: Statistics of the training set, as for :func:`per_class_table`.
        bins: Ascending edges of the bins, in training instances.
        phase: The checkpoint's phase; adds the groups ``old`` (earlier phases) and ``new`` (this one).
        fixed: AP with limits per category, if it was measured.
        costs: What each kind of error costs, likewise.
        confidence: How far scores are from what they promise, likewise.

    Returns:
        The rows of :data:`METRICS`, the number of ``evaluated_classes``, the fields of
        :class:`~ltpipe.metrics.tensors.TensorInfo`, and of AP-fixed the limit of detections per class and how many
        classes have fewer.

    Raises:
        UserError: Edges that do not ascend, or a category without training statistics.
    """
    measured = Measured(tensors, _facts(tensors, classes), bins, phase, fixed, costs, confidence)
    info = tensors.info
    return {
        **{row.key: row.value(measured) for row in _rows(measured)},
        "evaluated_classes": int(np.isfinite(measured.ap).sum()),
        "iou_type": info.iou_type,
        "protocol": info.protocol,
        "max_detections": info.max_detections,
        "engine": info.engine,
        "counts": info.counts,
        **({} if fixed is None else {"per_class_limit": fixed.per_category, "classes_below_limit": fixed.fewer}),
        **({} if info.boundary_ratio is None else {"boundary_ratio": info.boundary_ratio}),
    }


def flatten(metrics: Mapping[str, Any]) -> dict[str, Number]:
    """Return the numbers of :func:`summarize` under flat names: ``AP``, ..., ``bAP``, ``bin/10-100``, ``group/t1``."""
    flat: dict[str, Number] = {}
    groups: dict[str, Number] = {}
    for row in METRICS:
        value = metrics.get(row.key)
        if row.format in ("percent", "points", "error") and row.key in metrics:
            flat[row.key] = value
        elif row.format == "bins":
            groups |= {f"bin/{item['label']}": item["AP"] for item in value or ()}
        elif row.format == "phases":
            groups |= {f"group/{name}": item["AP"] for name, item in (value or {}).items()}
    return flat | groups


def flat_intervals(metrics: Mapping[str, Any]) -> dict[str, Number]:
    """Return the ends of the intervals under flat names, ``AP_low``, ``AP_high``, ...; nothing where there are none."""
    ends = {key: both or (None, None) for key, both in metrics.get("intervals", {}).items()}
    return {
        f"{key}_{end}": value for key, both in ends.items() for end, value in zip(("low", "high"), both, strict=True)
    }


def _rows(measured: Measured) -> list[Metric]:
    """Return the rows that apply."""
    kind = measured.tensors.info.iou_type
    return [row for row in METRICS if kind in row.iou_types and getattr(measured, row.needs) is not None]


def _facts(tensors: Tensors, classes: pd.DataFrame) -> pd.DataFrame:
    """Return what is known of each evaluated category, columns :data:`FACTS`."""
    rows = row_of(tensors.category_ids, classes["category_id"].to_numpy())
    if (rows < 0).any():
        raise UserError("category without training statistics", got=tensors.category_ids[rows < 0][:5].tolist())
    table = classes.iloc[rows].reset_index(drop=True).rename(columns=COUNTS)
    if "phase" not in table:
        table["phase"] = pd.array([None] * len(table), "Int64")
    return table[list(FACTS)]

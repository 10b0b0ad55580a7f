"""Every reported number, computed from the precision and recall tensors alone.

``AP_c`` of a category is the mean of its precision over all IoU thresholds and recall levels; an entry of -1 (no ground
truth) does not count, and a category without any entry is *not evaluated*. A group of categories has the mean of its
evaluated members. Groups are formed by counts of the **training** set: LVIS frequency (``APr``, ``APc``, ``APf``),
bins over training instances (SimCal, arXiv 2007.11978), and phases (Learning to Segment the Tail, arXiv 2004.00900).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.metrics.evaluation import Tensors
from ltpipe.metrics.ground_truth import row_of
from ltpipe.metrics.native_engine import AREAS, IOU_THRESHOLDS

DEFAULT_EDGES = (10, 100, 1000)
COUNTS = {"image_count": "train_images", "instance_count": "train_instances"}
COLUMNS = ("category_id", "name", "frequency", *COUNTS.values(), "phase", "AP", "AP50", "AR")
Number = float | None


def per_class_table(tensors: Tensors, classes: pd.DataFrame) -> pd.DataFrame:
    """Return one row per evaluated category with ``AP``, ``AP50`` and ``AR``, NaN where it has no ground truth.

    Args:
        tensors: ``K`` categories.
        classes: Statistics of the training set, a superset of these categories in any order, as
            :func:`ltpipe.data.statistics.class_statistics` returns them; a column ``phase`` (the phase that introduces
            the class, 0 for base classes) is optional.

    Returns:
        ``K`` rows in the order of ``tensors.category_ids``, columns :data:`COLUMNS`.

    Raises:
        UserError: A category has no training statistics.
    """
    rows = row_of(tensors.category_ids, classes["category_id"].to_numpy(np.int64))
    if (rows < 0).any():
        raise UserError("category without training statistics", got=tensors.category_ids[rows < 0][:5].tolist())
    table = classes.iloc[rows].reset_index(drop=True).rename(columns=COUNTS)
    if "phase" not in table:
        table["phase"] = pd.array([None] * len(table), "Int64")
    table["AP"] = _class_means(tensors.precision[:, :, :, 0].transpose(2, 0, 1))
    table["AP50"] = _class_means(tensors.precision[:1, :, :, 0].transpose(2, 0, 1))
    table["AR"] = _class_means(tensors.recall[:, :, 0].T)
    return table[list(COLUMNS)]


def summarize(
    tensors: Tensors,
    classes: pd.DataFrame,
    *,
    bins: Sequence[float] = DEFAULT_EDGES,
    phase: int | None = None,
) -> dict[str, Any]:
    """Compute every number reported for one checkpoint and one IoU type; all are fractions of 1, None is "no class".

    Args:
        tensors: Precision and recall.
        classes: Statistics of the training set, as for :func:`per_class_table`.
        bins: Ascending edges of the bins, in training instances.
        phase: The checkpoint's phase; adds the groups ``old`` (earlier phases) and ``new`` (this one).

    Returns:
        ``AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl``, ``bAP`` with ``bAP_complete`` (no bin is
        empty), ``bins``, ``groups`` (``b0``, ``t1``, ...; ``base``, ``old``, ``new``), the number of
        ``evaluated_classes``, and the fields of :class:`~ltpipe.metrics.evaluation.TensorInfo`.

    Raises:
        UserError: Edges that do not ascend, or a category without training statistics.
    """
    table = per_class_table(tensors, classes)
    ap = table["AP"].to_numpy(float)
    result: dict[str, Any] = {"AP": _mean(tensors.precision[..., 0])}
    for threshold in (50, 75):
        level = int(np.argmin(np.abs(IOU_THRESHOLDS - threshold / 100)))
        result[f"AP{threshold}"] = _mean(tensors.precision[level, ..., 0])
    for index, name in enumerate(AREAS[1:], 1):
        result[f"AP{name}"] = _mean(tensors.precision[..., index])
    for letter in "rcf":
        members = table["frequency"].to_numpy() == letter
        result[f"AP{letter}"] = _mean(tensors.precision[:, :, members, 0])
    for index, name in enumerate(AREAS):
        result["AR" if name == "all" else f"AR{name}"] = _mean(tensors.recall[..., index])
    result |= bin_metrics(ap, table["train_instances"].to_numpy(), bins)
    result["groups"] = _phase_groups(ap, table["phase"], phase)
    result["evaluated_classes"] = int(np.isfinite(ap).sum())
    info = tensors.info
    return result | {
        "iou_type": info.iou_type,
        "protocol": info.protocol,
        "max_detections": info.max_detections,
        "engine": info.engine,
        "counts": info.counts,
        **({} if info.boundary_ratio is None else {"boundary_ratio": info.boundary_ratio}),
    }


def bin_metrics(
    ap: NDArray[np.float64], train_instances: NDArray[np.integer], edges: Sequence[float] = DEFAULT_EDGES
) -> dict[str, Any]:
    """Average AP over bins of training instances.

    Bin 0 holds classes with fewer than ``edges[0]`` instances, the last bin those with ``edges[-1]`` or more.

    Args:
        ap: ``(K,) float64`` AP per class, NaN where not evaluated.
        train_instances: ``(K,)`` training instances.
        edges: Ascending edges.

    Returns:
        ``bins``: per bin ``label, low, high`` (None at the top), ``classes`` (evaluated), ``AP`` (None when empty);
        ``bAP``: mean over the bins that are not empty; ``bAP_complete``: whether none is.

    Raises:
        UserError: Edges that do not ascend.
    """
    if not len(edges) or list(edges) != sorted(set(edges)):
        raise UserError("bin edges must ascend", where="evaluate.bins", got=list(edges))
    member = np.searchsorted(np.asarray(edges, float), train_instances, side="right")
    bounds = [0, *edges]
    bins = []
    for index, low in enumerate(bounds):
        high = bounds[index + 1] if index + 1 < len(bounds) else None
        values = ap[(member == index) & np.isfinite(ap)]
        label = f"{low:g}+" if high is None else f"{low:g}-{high:g}"
        bins.append({"label": label, "low": low, "high": high, "classes": len(values), "AP": _plain_mean(values)})
    filled = [item["AP"] for item in bins if item["AP"] is not None]
    return {"bins": bins, "bAP": _plain_mean(np.array(filled)), "bAP_complete": len(filled) == len(bins)}


def geometric_edges(factor: int, count: int) -> list[int]:
    """Return ``factor ** 1 ... factor ** count``, the edges of SimCal's ``f`` and ``m``."""
    return [factor**power for power in range(1, count + 1)]


def flatten(metrics: Mapping[str, Any]) -> dict[str, Number]:
    """Return the numbers under flat names: ``AP``, ..., ``bAP``, ``bin/10-100``, ``group/t1``."""
    flat: dict[str, Number] = {
        key: value for key, value in metrics.items() if key.startswith(("AP", "AR")) or key == "bAP"
    }
    flat |= {f"bin/{item['label']}": item["AP"] for item in metrics["bins"]}
    return flat | {f"group/{name}": item["AP"] for name, item in metrics["groups"].items()}


def _phase_groups(ap: NDArray[np.float64], phases: pd.Series, current: int | None) -> dict[str, dict[str, Any]]:
    """Average AP over the classes of each phase, and over what is old and new to the current one."""
    if phases.isna().any():
        return {}
    of_class = phases.to_numpy(np.int64)
    members = {f"t{number}" if number else "b0": of_class == number for number in range(of_class.max(initial=0) + 1)}
    members["base"] = of_class == 0
    if current is not None:
        members |= {"old": of_class < current, "new": of_class == current}
    groups = {}
    for name, flag in members.items():
        values = ap[flag & np.isfinite(ap)]
        groups[name] = {"classes": len(values), "AP": _plain_mean(values)}
    return groups


def _class_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(K,)`` means over the valid entries of ``(K, ...)`` values; NaN where a class has none."""
    flat = np.ascontiguousarray(values.reshape(len(values), -1))
    valid = flat > -1
    count = valid.sum(axis=1)
    total = np.where(valid, flat, 0.0).sum(axis=1)
    means: NDArray[np.float64] = np.divide(total, count, out=np.full(len(flat), np.nan), where=count > 0)
    return means


def _mean(values: NDArray[np.float64]) -> Number:
    return _plain_mean(values[values > -1])


def _plain_mean(values: NDArray[np.float64]) -> Number:
    return float(values.mean()) if len(values) else None

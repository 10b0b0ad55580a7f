"""AP of groups of classes that the data set or the experiment makes: bins of training instances, phases.

Sources: bins, SimCal (arXiv 2007.11978); phases, Learning to Segment the Tail (arXiv 2004.00900).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.frequency import BIN_EDGES, bins_of

Number = float | None


def bin_metrics(
    ap: NDArray[np.float64], train_instances: NDArray[np.number[Any]], edges: Sequence[float] = BIN_EDGES
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
    member = np.array(bins_of(train_instances.tolist(), edges, where="evaluate.bins"))
    bounds = [0, *edges]
    bins = []
    for index, low in enumerate(bounds):
        high = bounds[index + 1] if index + 1 < len(bounds) else None
        label = f"{low:g}+" if high is None else f"{low:g}-{high:g}"
        bins.append({"label": label, "low": low, "high": high} | _group(ap, member == index))
    filled = [item["AP"] for item in bins if item["AP"] is not None]
    return {"bins": bins, "bAP": plain_mean(np.array(filled)), "bAP_complete": len(filled) == len(bins)}


def phase_groups(ap: NDArray[np.float64], phases: pd.Series, current: int | None) -> dict[str, dict[str, Any]]:
    """Average AP over the classes of each phase, and over what is old and new to the current one.

    Args:
        ap: ``(K,) float64`` AP per class, NaN where not evaluated.
        phases: Phase that introduces each class; missing values: there are no phases.
        current: The checkpoint's phase.

    Returns:
        ``{name: {"classes": evaluated ones, "AP": mean or None}}``: ``b0``, ``t1``, ...; ``base``, ``old``, ``new``.
    """
    if phases.isna().any():
        return {}
    of_class = phases.to_numpy(np.int64)
    members = {f"t{number}" if number else "b0": of_class == number for number in range(of_class.max(initial=0) + 1)}
    members["base"] = of_class == 0
    if current is not None:
        members |= {"old": of_class < current, "new": of_class == current}
    return {name: _group(ap, flag) for name, flag in members.items()}


def plain_mean(values: NDArray[np.float64]) -> Number:
    """Return the mean; None of nothing."""
    return float(values.mean()) if len(values) else None


def _group(ap: NDArray[np.float64], members: NDArray[np.bool_]) -> dict[str, Any]:
    values = ap[members & np.isfinite(ap)]
    return {"classes": len(values), "AP": plain_mean(values)}

"""What each kind of error costs: the AP that is gained when its errors are mended and nothing else.

Source: TIDE (Bolya et al., arXiv 2008.08115, ``dbolya/tide``), for all categories. Costs of a class and of a frequency
group are ltpipe's: the mean over its categories, with the same errors mended. Groups are by the category whose AP it
is: a detection that is mended in its class counts for the class of the object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltpipe.metrics import kernels
from ltpipe.metrics.error_kinds import Errors
from ltpipe.metrics.error_matching import CLS, IGNORED, LOC, MISS, RIGHT
from ltpipe.metrics.error_names import KINDS, SPECIAL
from ltpipe.metrics.native_engine import stable_order

RECALL_LEVELS = np.arange(101) / 100
LAST = 2 * len(KINDS)  # group of detections that were right from the start
Absent = Literal["skip", "zero"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Costs:
    """AP of every category at the positive overlap, as it is and with errors mended; fractions of 1.

    Attributes:
        ap: ``(K,)``; NaN for categories that do not count.
        mended: By kind ``(K,)``: AP with all errors of the kind mended and nothing else. ``FalsePos``: no wrong
            detection before a right one; ``FalseNeg``: no object but those that are found.
    """

    ap: Floats
    mended: Mapping[str, Floats]

    def only(self, members: Flags) -> Costs:
        """Return the costs of some categories ``(K,)``."""
        return Costs(self.ap[members], {name: ap[members] for name, ap in self.mended.items()})

    def of(self, members: Flags | None = None) -> dict[str, float | None]:
        """Return what each kind costs, in AP of all categories or of some ``(K,)``; None where none counts."""
        chosen = slice(None) if members is None else members
        base = _mean(self.ap[chosen])
        gains: dict[str, float | None] = {}
        for name, ap in self.mended.items():
            after = _mean(ap[chosen])
            gain = None if base is None or after is None else after - base
            gains[name] = gain if gain is None or name in SPECIAL else max(gain, 0.0)
        return gains

    def by_class(self, kind: str) -> Floats:
        """Return ``(K,)``: what a kind costs each category, in its AP; NaN where the category does not count."""
        gain: Floats = self.mended[kind] - self.ap
        return gain if kind in SPECIAL else np.maximum(gain, 0.0)


def error_costs(errors: Errors, *, absent: Absent = "skip") -> Costs:
    """Return what each kind of error costs.

    Args:
        errors: Of all detections.
        absent: Categories with detections and no object do not count (``skip``), or count as AP 0 (``zero``), as in
            the published code.
    """
    start = _start(errors)
    mended = {name: _ap(_mend(errors, start, [code], 0), absent) for code, name in enumerate(KINDS)}
    base = start._replace(group=np.zeros_like(start.group))
    perfect = base._replace(scores=np.where(errors.state == RIGHT, 1.0, 0.0))
    found = np.bincount(errors.ann_category[errors.used], minlength=len(errors.category_ids))
    mended |= {"FalsePos": _ap(perfect, absent), "FalseNeg": _ap(start._replace(objects=found), absent)}
    return Costs(_ap(base, absent), mended)


class _Points(NamedTuple):
    """Points of the curves.

    Attributes:
        scores: ``(D,)``.
        category: ``(D,)``.
        counts: ``(D,)`` takes part at all.
        right: ``(D,)``.
        group: ``(D,)`` order of equal scores; inside of a group that of the detections.
        pending: ``(D,)`` an error that has not been mended.
        objects: ``(K,)`` objects to be found.
    """

    scores: NDArray[np.floating]
    category: Ints
    counts: Flags
    right: Flags
    group: Ints
    pending: Flags
    objects: Ints


def _start(errors: Errors) -> _Points:
    right = errors.state == RIGHT
    objects = np.bincount(errors.ann_category, minlength=len(errors.category_ids))
    group = np.where(right, LAST, 0)
    return _Points(errors.scores, errors.det_category, errors.state != IGNORED, right, group, errors.kind >= 0, objects)


def _mend(errors: Errors, points: _Points, codes: Sequence[int], step: int) -> _Points:
    """Mend the errors of some kinds: the best candidate of an object finds it, all others go."""
    chosen = points.pending & np.isin(errors.kind, codes)
    finds = chosen & _best_candidates(errors)
    category = points.category.copy()
    category[finds] = errors.ann_category[errors.points_to[finds]]
    objects = points.objects
    if MISS in codes:
        objects = objects - np.bincount(errors.ann_category[errors.missed], minlength=len(objects))
    # Published order of equal scores: errors and what was just mended, then what was mended before, last step first.
    group = np.where(points.right & (points.group == 0), LAST - step, points.group)
    return _Points(
        points.scores,
        category,
        (points.counts & ~chosen) | finds,
        points.right | finds,
        group,
        points.pending & ~chosen,
        objects,
    )


def _best_candidates(errors: Errors) -> Flags:
    """Return which errors of class or place are the best of those that mean the same object, which nothing found."""
    best = np.zeros(len(errors.dets), bool)
    rows = np.flatnonzero((errors.kind == CLS) | (errors.kind == LOC))
    rows = rows[~errors.used[errors.points_to[rows]]]
    best[rows[np.unique(errors.points_to[rows], return_index=True)[1]]] = True
    return best


def _ap(points: _Points, absent: Absent) -> Floats:
    """Return ``(K,)`` AP at 101 recalls; NaN for categories that do not count."""
    rows = np.flatnonzero(points.counts)
    rows = rows[np.lexsort((points.group[rows], -points.scores[rows]))]
    rows = rows[stable_order(points.category[rows])]
    held = np.bincount(points.category[rows], minlength=len(points.objects))
    right = points.right[rows].astype(np.uint16)[None]
    precision = np.full((1, len(RECALL_LEVELS), len(held), 1), np.nan)
    recall = np.zeros((1, len(held), 1))
    pointer = np.concatenate([[0], np.cumsum(held)])
    kernels.accumulate(pointer, right, 1 - right, points.objects[:, None], RECALL_LEVELS, precision, recall)
    ap: Floats = precision[0, :, :, 0].mean(axis=0)
    if absent == "zero":
        ap[(points.objects == 0) & (held > 0)] = 0.0
    return ap


def _mean(values: Floats) -> float | None:
    counted = values[np.isfinite(values)]
    return float(counted.mean()) if len(counted) else None

"""Checkpoints compared two by two on the same resamples of the images, with what chance alone would make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from ltpipe.metrics.resamples import RESAMPLED, Difference, compare
from ltpipe.report.html import show
from ltpipe.report.inputs import Evaluation, complete, experiments_of

ALL_PAIRS = 4
"""Most checkpoints of an experiment of which every two are compared."""
COLUMNS = ("iou_type", "from", "to", "metric", "difference", "low", "high", "in_favour", "verdict")
CHANCE = "within its interval"


def pairs(evaluations: Sequence[Evaluation]) -> Iterator[tuple[Evaluation, Evaluation]]:
    """Yield which evaluations of one IoU type are compared.

    Inside an experiment every two checkpoints that know all classes; of more than :data:`ALL_PAIRS` the first with each
    other, and each with the next. Across experiments, checkpoints of one name.
    """
    known = [item for item in complete(evaluations) if item.resamples is not None]
    for experiment in experiments_of(known):
        mine = [item for item in known if item.experiment == experiment]
        for place, first in enumerate(mine):
            for distance, second in enumerate(mine[place + 1 :]):
                if len(mine) <= ALL_PAIRS or place == 0 or distance == 0:
                    yield first, second
    for place, first in enumerate(known):
        for second in known[place + 1 :]:
            if first.experiment != second.experiment and first.checkpoint == second.checkpoint:
                yield first, second


def compared(first: Evaluation, second: Evaluation) -> dict[str, Difference]:
    """Return how much larger each number is in the second; numbers that cannot be compared are left out."""
    assert first.resamples is not None and second.resamples is not None
    both = first.metrics, second.metrics
    found = {key: compare(first.resamples, second.resamples, both, key) for key in RESAMPLED}
    return {key: one for key, one in found.items() if one is not None}


def called(one: Difference) -> str:
    """Say whether a difference is more than chance."""
    return ("gain" if one.value > 0 else "loss") if one.beyond_chance else CHANCE


def differences_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return one row per pair and number, columns :data:`COLUMNS`; fractions of 1."""
    rows, name = [], naming(evaluations)
    for kind in dict.fromkeys(item.iou_type for item in evaluations):
        for first, second in pairs([item for item in evaluations if item.iou_type == kind]):
            for key, one in compared(first, second).items():
                what = kind, name(first), name(second), key
                rows.append((*what, one.value, one.low, one.high, one.in_favour, called(one)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def said_of(first: Evaluation, second: Evaluation, key: str = "AP") -> tuple[str, bool]:
    """Return the interval of a difference in words, empty if it is not known, and whether chance may make it."""
    if first.resamples is None or second.resamples is None:
        return "", False
    one = compared(first, second).get(key)
    if one is None:
        return "", False
    low, high = (show(value, "points") for value in (one.low, one.high))
    may = "" if one.beyond_chance else ", within which it may be chance"
    return f" (95 % interval of {key} {low} to {high}{may})", not one.beyond_chance


def naming(evaluations: Sequence[Evaluation]) -> Callable[[Evaluation], str]:
    """Return what names a checkpoint: of several experiments with the experiment."""
    if len(experiments_of(evaluations)) == 1:
        return lambda item: item.checkpoint
    return lambda item: f"{item.experiment}: {item.checkpoint}"

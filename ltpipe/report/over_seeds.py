"""Numbers over the seeds of an experiment: mean, spread, interval, and differences seed by seed.

Intervals are those of Student's t distribution for the mean over trainings with other seeds, on the same images: they
know of the seeds alone, as those of resampled images know of the images alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ltpipe.metrics.table import flatten
from ltpipe.report.differences import ALL_PAIRS, CHANCE

LEVEL = 0.95
MEASURED = ("experiment", "checkpoint", "set", "iou_type")
"""What tells measurements apart, beside the seed."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """One checkpoint of the run for one seed, measured on one part of the data by one IoU type.

    Attributes:
        experiment: The experiment with seeds, or one without that is compared with it.
        seed: The seed.
        checkpoint: ``base``, ``phase<k>`` or the name of a calibrator.
        part: ``val``, or a further test set.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        metrics: What :func:`~ltpipe.metrics.table.summarize` returns.
        chosen_here: As in :class:`~ltpipe.report.inputs.Evaluation`.
    """

    experiment: str
    seed: int
    checkpoint: str
    part: str
    iou_type: str
    metrics: Mapping[str, Any]
    chosen_here: bool = False


class Mean(NamedTuple):
    """A number over seeds; ``sd``, ``low`` and ``high`` are NaN for a single one.

    Attributes:
        seeds: How many there are.
        mean: Mean.
        sd: Standard deviation over the seeds.
        low: Lower end of the interval of the mean.
        high: Its upper end.
    """

    seeds: int
    mean: float
    sd: float
    low: float
    high: float


def mean_of(values: Sequence[float], level: float = LEVEL) -> Mean:
    """Return mean, standard deviation and the interval of the mean by Student's t; values are finite, at least one."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Mean(count, mean, np.nan, np.nan, np.nan)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * sd / np.sqrt(count)
    return Mean(count, mean, sd, mean - half, mean + half)


def numbers_table(measured: Iterable[Measurement]) -> pd.DataFrame:
    """Return one row per number: :data:`MEASURED`, ``seed``, ``metric``, ``value`` (a fraction of 1), ``classes``."""
    rows = [
        (one.experiment, one.checkpoint, one.part, one.iou_type, one.seed, metric, float(value), classes)
        for one in measured
        for classes in (one.metrics["evaluated_classes"],)
        for metric, value in flatten(one.metrics).items()
        if value is not None
    ]
    return pd.DataFrame(rows, columns=[*MEASURED, "seed", "metric", "value", "classes"])


def means_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per number over its seeds: :data:`MEASURED`, ``metric``, and the fields of :class:`Mean`."""
    groups = numbers.groupby([*MEASURED, "metric"], sort=False)
    rows = [(*key, *mean_of(group["value"].tolist())) for key, group in groups]
    return pd.DataFrame(rows, columns=[*MEASURED, "metric", *Mean._fields])


def paired_table(numbers: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return differences of two checkpoints that have the same seed.

    Inside an experiment every two checkpoints that know all classes, of many the first with each other one; across
    experiments those of one name.

    Args:
        numbers: Of :func:`numbers_table`.
        metrics: Numbers to compare.

    Returns:
        ``set, iou_type, from, to, metric``, the fields of :class:`Mean` of the difference, ``in_favour`` (seeds in
        favour of the second) and ``verdict``: ``gain``, ``loss``, or within its interval. Pairs with two seeds or more.
    """
    rows: list[tuple[Any, ...]] = []
    for (part, kind), some in numbers.groupby(["set", "iou_type"], sort=False):
        whole = some[some["classes"] == some["classes"].max()]
        of = {key: group for key, group in whole.groupby(["experiment", "checkpoint"], sort=False)}
        single = len({experiment for experiment, _ in of}) == 1
        for first, second in _pairs(list(of)):
            for metric in metrics:
                found = paired(of[first], of[second], metric)
                if found is not None:
                    names = (key[1] if single else ": ".join(key) for key in (first, second))
                    rows.append((part, kind, *names, metric, *found[0], found[1], verdict_of(found[0])))
    what = ["set", "iou_type", "from", "to", "metric"]
    return pd.DataFrame(rows, columns=[*what, *Mean._fields, "in_favour", "verdict"])


def paired(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> tuple[Mean, int] | None:
    """Return how much larger a number is in the second, and in how many seeds it is; None below two common seeds.

    Args:
        first: Rows of :func:`numbers_table` of one checkpoint.
        second: Those of another one.
        metric: The number.
    """
    one, other = _by_seed(first, metric), _by_seed(second, metric)
    gaps = [other[seed] - one[seed] for seed in sorted(one.keys() & other.keys())]
    return (mean_of(gaps), sum(gap > 0 for gap in gaps)) if len(gaps) > 1 else None


def _pairs(keys: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    for experiment in dict.fromkeys(key[0] for key in keys):
        mine = [key for key in keys if key[0] == experiment]
        yield from combinations(mine, 2) if len(mine) <= ALL_PAIRS else ((mine[0], key) for key in mine[1:])
    yield from ((a, b) for a, b in combinations(keys, 2) if a[0] != b[0] and a[1] == b[1])


def _by_seed(group: pd.DataFrame, metric: str) -> dict[int, float]:
    rows = group[group["metric"] == metric]
    return dict(zip(rows["seed"].tolist(), rows["value"].tolist(), strict=True))


def verdict_of(found: Mean) -> str:
    """Say whether a mean difference is more than the seeds make: ``gain``, ``loss``, or within its interval."""
    if found.low <= 0 <= found.high:
        return CHANCE
    return "gain" if found.mean > 0 else "loss"

"""One detector scored in several ways: rows of modes and thresholds, as ``sweep.csv`` holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.data.tables import write_csv
from ltpipe.evaluation.metrics import flatten

WHAT = ("mode", "threshold", "configured", "calibrated_classes", "iou_type")


@dataclass(frozen=True, eq=False)
class Sweep:
    """A checkpoint with two classifiers.

    Attributes:
        experiment: Name of the experiment.
        checkpoint: Name of the checkpoint.
        table: What :func:`write_sweep` wrote.
    """

    experiment: str
    checkpoint: str
    table: pd.DataFrame

    def of(self, iou_type: str) -> pd.DataFrame:
        """Return the rows of one IoU type, modes before thresholds, thresholds ascending."""
        rows = self.table[self.table["iou_type"] == iou_type]
        return rows.sort_values("threshold", na_position="first", kind="stable").reset_index(drop=True)


def sweep_rows(
    names: Sequence[tuple[str, float | None]],
    calibrated_classes: int | None,
    metrics: Mapping[str, Mapping[str, Any]],
    configured: tuple[str, float | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one row per name and IoU type; all names have the same numbers.

    Args:
        names: Modes with their thresholds (None: the mode has none).
        calibrated_classes: Classes that take the calibrated score; None if all take a mean.
        metrics: Per IoU type what :func:`~ltpipe.evaluation.metrics.summarize` returns.
        configured: The name that the checkpoint itself is evaluated under.
    """
    for name in names:
        for iou_type, numbers in metrics.items():
            what = (*name, name == configured, calibrated_classes, iou_type)
            yield dict(zip(WHAT, what, strict=True)) | flatten(numbers)


def write_sweep(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as CSV; all numbers are fractions of 1."""
    write_csv(path, pd.DataFrame(rows))

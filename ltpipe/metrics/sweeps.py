"""One detector scored in several ways: rows of modes and thresholds (``sweep.csv``), or of values to choose from.

``sweep.csv`` lies beside the numbers of a checkpoint with two classifiers, ``choice.csv`` beside a calibrator whose
options were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.data.tables import write_csv
from ltpipe.metrics.table import flatten

WHAT = ("mode", "threshold", "configured", "calibrated_classes", "iou_type")
FIXED = ("images", "metric", "configured", "iou_type")
"""Columns of ``choice.csv`` after those of the options and before the numbers."""
CHOSEN_ON = {
    "holdout": "training images that nothing was trained on",
    "seen": "training images, on which the given detector may have been trained",
    "val": "validation images",
}


@dataclass(frozen=True, eq=False)
class Sweep:
    """A checkpoint with two classifiers, or one whose options were chosen.

    Attributes:
        experiment: Name of the experiment.
        checkpoint: Name of the checkpoint.
        table: What :func:`write_sweep` wrote.
    """

    experiment: str
    checkpoint: str
    table: pd.DataFrame

    @property
    def options(self) -> list[str]:
        """Options that were chosen; none if the table is one of modes and thresholds."""
        columns = list(self.table.columns)
        return columns[: columns.index("images")] if "images" in columns else []

    @property
    def kind(self) -> str:
        """``choice`` or ``sweep``."""
        return "choice" if self.options else "sweep"

    def key(self, iou_type: str) -> str:
        """Return the name of its figure."""
        return f"{self.kind}.{self.experiment}.{self.checkpoint}.{iou_type}"

    def of(self, iou_type: str) -> pd.DataFrame:
        """Return the rows of one IoU type in ascending order, modes before thresholds."""
        rows = self.table[self.table["iou_type"] == iou_type]
        by = self.options or ["threshold"]
        return rows.sort_values(by, na_position="first", kind="stable").reset_index(drop=True)

    def curve(self, iou_type: str) -> tuple[str, pd.DataFrame] | None:
        """Return the option that a curve can be drawn over, and its rows; None if there is none, or a single value."""
        rows, option = self.of(iou_type), (self.options or ["threshold"])[0]
        if not self.options:
            rows = rows[rows["mode"] == "dual"]
        if option == "threshold":  # drawn on a logarithmic scale
            rows = rows[rows["threshold"] > 0]
        rows = rows.drop_duplicates(option) if len(self.options) < 2 else rows[:0]
        return (option, rows) if len(rows) > 1 else None


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
        metrics: Per IoU type what :func:`~ltpipe.metrics.table.summarize` returns.
        configured: The name that the checkpoint itself is evaluated under.
    """
    for name in names:
        for iou_type, numbers in metrics.items():
            what = (*name, name == configured, calibrated_classes, iou_type)
            yield dict(zip(WHAT, what, strict=True)) | flatten(numbers)


def choice_rows(
    tried: Sequence[Mapping[str, float]],
    numbers: Sequence[Mapping[str, Any]],
    best: int,
    *,
    images: str,
    iou_type: str,
    metric: str,
) -> list[dict[str, Any]]:
    """Return one row per value that was tried.

    Args:
        tried: Options by name.
        numbers: What :func:`~ltpipe.metrics.table.summarize` returned for each.
        best: Which one was chosen.
        images: What decided, one of :data:`CHOSEN_ON`.
        iou_type: What was measured.
        metric: The number that decided.
    """
    return [
        {**options, **dict(zip(FIXED, (images, metric, index == best, iou_type), strict=True)), **flatten(found)}
        for index, (options, found) in enumerate(zip(tried, numbers, strict=True))
    ]


def write_sweep(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as CSV; all numbers are fractions of 1."""
    write_csv(path, pd.DataFrame(rows))

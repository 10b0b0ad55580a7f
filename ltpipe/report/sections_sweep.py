"""The section of the report on detectors with two classifiers: modes and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ltpipe.metrics.fusion_sweep import Sweep
from ltpipe.report import html
from ltpipe.report.html import Column
from ltpipe.report.inputs import IOU_NAMES, numbers

MODES = {
    "base": "detector alone",
    "cal": "calibrated head alone",
    "avg": "mean of both",
    "dual": "both, by instance count",
}


def sweep(sweeps: Sequence[Sweep], figures: Mapping[str, Path]) -> list[str]:
    """Return the modes and thresholds of every checkpoint that has two classifiers.

    Args:
        sweeps: Checkpoints with two classifiers.
        figures: PNG files; those of thresholds are named ``sweep.<experiment>.<checkpoint>.<iou>``.
    """
    if not sweeps:
        return []
    parts = [
        html.note(
            "One run of the detector, scored in several ways. In the mode dual, classes with fewer training instances "
            "than the threshold take the score of the calibrated head, the others that of the detector. The row in "
            "use is the one that the other sections show. Read a threshold off this table only for another data set: "
            "here it would be chosen on the images that it is judged on."
        )
    ]
    for one in sweeps:
        for kind, name in IOU_NAMES.items():
            table = one.of(kind)
            if table.empty:
                continue
            bins = [column for column in table if column.startswith("bin/")]
            columns = [
                Column("what", "scores", "text"),
                Column("threshold", "threshold", "text"),
                Column("calibrated", "calibrated classes", "text"),
                *numbers("sweep"),
                *(Column(label, label.removeprefix("bin/")) for label in bins),
            ]
            rows = [_cells(row) for row in table.to_dict("records")]
            parts += [html.heading(f"{one.experiment}: {one.checkpoint}, {name}"), html.table(columns, rows)]
            key = f"sweep.{one.experiment}.{one.checkpoint}.{kind}"
            if key in figures:
                parts.append(html.figure(figures[key], f"AP of the mode dual against its threshold, {name}."))
    return parts


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    def count(value: object) -> str | None:
        return None if pd.isna(value) else f"{float(str(value)):g}"

    in_use = " (in use)" if row["configured"] else ""
    return {
        **row,
        "what": f"{row['mode']}: {MODES[str(row['mode'])]}{in_use}",
        "threshold": count(row["threshold"]),
        "calibrated": count(row["calibrated_classes"]),
    }

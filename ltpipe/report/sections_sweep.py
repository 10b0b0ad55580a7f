"""The sections of the report on detectors scored in several ways: modes and thresholds, and values to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ltpipe.metrics.sweeps import CHOSEN_ON, Sweep
from ltpipe.report import html
from ltpipe.report.html import Column
from ltpipe.report.inputs import IOU_NAMES, numbers

MODES = {
    "base": "detector alone",
    "cal": "calibrated head alone",
    "avg": "mean of both",
    "dual": "both, by instance count",
}

_WARNINGS = {
    "holdout": " The numbers of the other sections are those of the validation images, which took no part.",
    "seen": " Scores on images that a detector was trained on are too good, so the choice may be off.",
    "val": " The checkpoint is judged on the images that it was chosen on: its numbers are too good.",
}


def sweep(sweeps: Sequence[Sweep], figures: Mapping[str, Path]) -> list[str]:
    """Return the modes and thresholds of every checkpoint that has two classifiers.

    Args:
        sweeps: Checkpoints with two classifiers.
        figures: PNG files; those of thresholds are named ``sweep.<experiment>.<checkpoint>.<iou>``.
    """
    sweeps = [one for one in sweeps if not one.options]
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
            key = one.key(kind)
            if key in figures:
                parts.append(html.figure(figures[key], f"AP of the mode dual against its threshold, {name}."))
    return parts


def choices(sweeps: Sequence[Sweep], figures: Mapping[str, Path]) -> list[str]:
    """Return the values that were tried for every calibrator whose options were chosen, and on which images.

    Args:
        sweeps: Tables of values, among others.
        figures: PNG files; those of values are named ``choice.<experiment>.<checkpoint>.<iou>``.
    """
    parts: list[str] = []
    for one in sweeps:
        for kind, name in IOU_NAMES.items():
            table = one.of(kind) if one.options else pd.DataFrame()
            if table.empty:
                continue
            columns = [*(Column(option, option, "text") for option in one.options), *numbers("sweep")]
            rows = [
                {**row, **{option: f"{row[option]:g}" for option in one.options}} for row in table.to_dict("records")
            ]
            chosen = table[table["configured"].astype(bool)].iloc[0]
            for row in rows:
                row[one.options[0]] += " (chosen)" if row["configured"] else ""
            what = ", ".join(f"{option} = {chosen[option]:g}" for option in one.options)
            parts += [
                html.heading(f"{one.experiment}: {one.checkpoint}, {name}"),
                html.note(
                    f"{what}: best {chosen['metric']} on {CHOSEN_ON[chosen['images']]}. One run of the detector, "
                    f"scored with every value.{_WARNINGS[chosen['images']]}"
                ),
                html.table(columns, rows),
            ]
            if one.key(kind) in figures:
                parts.append(html.figure(figures[one.key(kind)], f"AP against {one.options[0]}, {name}."))
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

"""Numbers as text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ltpipe.metrics.class_groups import Number
from ltpipe.metrics.table import rows_in
from ltpipe.metrics.tensors import IOU_TYPES
from ltpipe.report.html import show
from ltpipe.report.inputs import IOU_NAMES


def numbers_text(scores: Mapping[str, Mapping[str, Mapping[str, Number]]]) -> str:
    """Return the numbers of the overview as text, files below each other, one block per IoU type."""
    columns = [row.key for row in (*rows_in("overview"), *rows_in("bins"))] + ["AP_fixed", "AP_pool", "D-ECE"]
    width = max(len("detections"), *map(len, scores))
    lines: list[str] = []
    for kind in IOU_TYPES:
        rows = {stem: numbers[kind] for stem, numbers in scores.items() if kind in numbers}
        if not rows:
            continue
        shown = [key for key in columns if any(key in numbers for numbers in rows.values())]
        lines += ["", f"{IOU_NAMES[kind].capitalize()}, percent"]
        lines.append("detections".ljust(width) + "".join(key.rjust(max(7, len(key) + 2)) for key in shown))
        for stem, numbers in rows.items():
            cells = (show(numbers.get(key), "percent").rjust(max(7, len(key) + 2)) for key in shown)
            lines.append(stem.ljust(width) + "".join(cells))
    return "\n".join(lines[1:])


def differences_text(table: pd.DataFrame) -> str:
    """Return how AP differs from file to file, and whether that is more than chance, as text."""
    lines: list[str] = []
    shown = table[table["metric"] == "AP"]
    for kind, rows in shown.groupby("iou_type", sort=False):
        lines += [
            "",
            f"{IOU_NAMES[str(kind)].capitalize()}, AP, percent points, 95 % interval, share of draws in favour",
        ]
        for row in rows.to_dict("records"):
            value, low, high = (show(row[key], "points") for key in ("difference", "low", "high"))
            ends = f"{value} ({low} to {high}), {100 * row['in_favour']:.0f} %: {row['verdict']}"
            lines.append(f"{row['from']} -> {row['to']}: {ends}")
    return "\n".join(lines)

"""What each kind of error costs, as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.error_names import KINDS
from ltpipe.report.differences import naming
from ltpipe.report.html import show
from ltpipe.report.inputs import IOU_NAMES, Evaluation, complete
from ltpipe.report.plots import COLOURS, STYLE, save

SHOWN = 4
"""Most checkpoints of a figure: the last ones."""
GROUPS = {"": "all classes", **{f"_{letter}": name for letter, name in FREQUENCY_NAMES.items()}}
Costs = Mapping[str, float | None]


def costs_of(metrics: Mapping[str, Any]) -> dict[str, Costs]:
    """Return by group of classes what each kind of error costs, fractions of 1; groups without numbers are left out."""
    costs = {name: {kind: metrics.get(f"dAP_{kind}{suffix}") for kind in KINDS} for suffix, name in GROUPS.items()}
    return {name: one for name, one in costs.items() if any(cost is not None for cost in one.values())}


def draw_errors(folder: Path, evaluations: Sequence[Evaluation]) -> dict[str, Path]:
    """Draw the costs of errors where they are known: ``errors.<iou>``."""
    figures, name = {}, naming(evaluations)
    for kind, title in IOU_NAMES.items():
        shown = complete([item for item in evaluations if item.iou_type == kind])[-SHOWN:]
        costs = {name(item): found for item in shown if (found := costs_of(item.metrics))}
        if costs:
            path = folder / f"errors_{kind}"
            figures[f"errors.{kind}"] = plot_errors(costs, path, title=f"AP50 lost to each kind of error, {title}")
    return figures


def plot_errors(costs: Mapping[str, Mapping[str, Costs]], path: Path, *, title: str) -> Path:
    """Draw a bar per group of classes and checkpoint, a part of it per kind of error.

    Args:
        costs: By checkpoint label and group of classes, fractions of 1 by kind; None is drawn as nothing.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    groups = dict.fromkeys(group for one in costs.values() for group in one)
    rows = [(group, label) for group in groups for label, one in costs.items() if group in one]
    place = np.arange(len(rows)) + 0.6 * np.array([list(groups).index(group) for group, _ in rows])
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(8.4, 1.7 + 0.32 * (len(rows) + 0.6 * len(groups))), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title)
        left = np.zeros(len(rows))
        for index, (kind, meaning) in enumerate(KINDS.items()):
            widths = np.array([100 * (costs[label][group][kind] or 0.0) for group, label in rows])
            axes.barh(place, widths, 0.8, left=left, color=COLOURS[index], label=f"{kind}: {meaning}")
            for row, width in enumerate(widths):
                if width > 0.06 * _longest(costs):
                    text = show(width / 100, "percent")
                    middle = left[row] + width / 2
                    axes.text(middle, place[row], text, ha="center", va="center", fontsize=8, color="white")
            left += widths
        names = [group if len(costs) == 1 else f"{group}, {label}" for group, label in rows]
        axes.set_yticks(place, names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, _longest(costs) * 1.02 or 1)
        axes.set_xlabel("AP50 (points)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
        return save(figure, path)


def _longest(costs: Mapping[str, Mapping[str, Costs]]) -> float:
    """Return the length of the longest bar, in points."""
    return max(100 * sum(cost or 0.0 for cost in one.values()) for groups in costs.values() for one in groups.values())

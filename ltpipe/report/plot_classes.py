"""Figures with a place for every class: the long tail of the data, and AP class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.report.plots import COLOURS, STYLE, legend_below, save

NAMED = 60
"""Classes up to which figures name each of them."""
GROUP_COLOURS = {"f": COLOURS[0], "c": COLOURS[1], "r": COLOURS[3]}
_BORDER: dict[str, Any] = {"color": "#66707a", "linewidth": 1, "linestyle": (0, (4, 3))}


def plot_long_tail(classes: pd.DataFrame, path: Path, *, title: str, counted: str) -> Path:
    """Draw the objects of every class, the most frequent first, coloured by frequency group, with borders of phases.

    Args:
        classes: ``name``, ``train_instances``, ``category_id``, ``frequency`` and, where there are phases, ``phase``.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.
        counted: What is counted, for the axis.

    Returns:
        The PNG file.
    """
    ranked = classes.sort_values(["train_instances", "category_id"], ascending=[False, True], ignore_index=True)
    counts = ranked["train_instances"].to_numpy(float)
    colours = [GROUP_COLOURS.get(str(letter), COLOURS[7]) for letter in ranked["frequency"]]
    with matplotlib.rc_context(STYLE):
        figure, axes, named = _canvas(title, len(ranked), 1)
        places = np.arange(len(ranked))
        # A class without objects keeps its place: nothing of a bar on a logarithmic axis.
        shown = np.where(counts > 0, counts, np.nan)
        if named:
            axes.barh(places, shown - 0.5, 0.8, left=0.5, color=colours, linewidth=0)  # to the count
            axes.set_xscale("log")
            _name_classes(axes, ranked["name"])
            axes.set_xlabel(counted)
            for place, count in zip(places.tolist(), counts.tolist(), strict=True):
                axes.annotate(
                    f"{count:,.0f}",
                    (max(count, 0.5), place),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        else:
            axes.bar(places, shown, 1.0, color=colours, linewidth=0)
            axes.set_yscale("log")
            axes.set_ylabel(counted)
            axes.set_xlabel("classes, most frequent first")
        _mark_phases(axes, ranked, named)
        groups = [letter for letter in ("f", "c", "r") if (ranked["frequency"] == letter).any()]
        handles = [
            Patch(color=GROUP_COLOURS[g], label=f"{FREQUENCY_NAMES[g]} ({int((ranked['frequency'] == g).sum())})")
            for g in groups
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return save(figure, path)


def plot_class_bars(frames: Mapping[str, pd.DataFrame], path: Path, *, title: str) -> Path:
    """Draw the AP of every class as horizontal bars with names, the most frequent class first.

    Args:
        frames: Per checkpoint label its table of :func:`~ltpipe.metrics.table.per_class_table`; at most :data:`NAMED`
            classes.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    first = next(iter(frames.values()))
    order = [column for column in ("train_instances", "category_id") if first[column].notna().all()]
    ranked = first.sort_values(order, ascending=[column == "category_id" for column in order], ignore_index=True)
    with matplotlib.rc_context(STYLE):
        figure, axes, _ = _canvas(title, len(ranked), len(frames))
        width = 0.84 / len(frames)
        for index, (label, frame) in enumerate(frames.items()):
            values = frame.set_index("category_id")["AP"].reindex(ranked["category_id"]).to_numpy(float)
            places = np.arange(len(ranked)) + (index - (len(frames) - 1) / 2) * width
            axes.barh(
                places, 100 * np.nan_to_num(values), 0.92 * width, color=COLOURS[index % len(COLOURS)], label=label
            )
            for place in places[np.isnan(values)]:
                axes.annotate("–", (0, place), (2, 0), textcoords="offset points", va="center", fontsize=7)
        _name_classes(axes, _with_counts(ranked))
        axes.set_xlabel("AP (%)")
        axes.set_xlim(left=0)
        _mark_phases(axes, ranked, True)
        legend_below(figure, axes, len(frames))
        return save(figure, path)


def _with_counts(ranked: pd.DataFrame) -> list[str]:
    """Return names with group and number of training objects, as far as they are known."""
    found = []
    for row in ranked.itertuples():
        known = [str(row.frequency)] if isinstance(row.frequency, str) else []
        known += [f"{row.train_instances:,.0f}"] if row.train_instances == row.train_instances else []
        found.append(f"{row.name} ({', '.join(known)})" if known else str(row.name))
    return found


def _canvas(title: str, classes: int, bars: int) -> tuple[Figure, Axes, bool]:
    """Return a figure with room for every name, or a wide one; and whether there is room."""
    named = classes <= NAMED
    height = 1.6 + classes * max(0.21, 0.09 * bars) if named else 4.4
    figure = Figure(figsize=(8.4, max(height, 3.0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, pad=14)
    if named:
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
    return figure, axes, named


def _name_classes(axes: Axes, names: Sequence[str] | pd.Series) -> None:
    # Dollar signs would begin a formula.
    shown = [(name if len(name) <= 34 else f"{name[:32]}…").replace("$", r"\$") for name in map(str, names)]
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _mark_phases(axes: Axes, ranked: pd.DataFrame, named: bool) -> None:
    """Draw a line before the first class of every phase."""
    if "phase" not in ranked or ranked["phase"].isna().all() or ranked["phase"].nunique() < 2:
        return
    for phase in sorted(set(ranked["phase"].dropna().astype(int)))[1:]:
        border = float(np.flatnonzero(ranked["phase"] >= phase).min()) - 0.5
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": "#333b44"}
        if named:
            axes.axhline(border, **_BORDER)
            across = axes.get_yaxis_transform()
            axes.annotate(f"phase {phase}", (1, border), (-3, -10), xycoords=across, ha="right", **text)
        else:
            axes.axvline(border, **_BORDER)
            axes.annotate(f"phase {phase}", (border, 1), (3, -10), xycoords=axes.get_xaxis_transform(), **text)

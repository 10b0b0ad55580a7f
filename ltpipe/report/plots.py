"""Figures of the report, drawn without a display and saved as PNG and SVG.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; lines also differ in their markers.
"""

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
from matplotlib.ticker import MaxNLocator

from ltpipe.frequency import BIN_EDGES, FREQUENCY_NAMES
from ltpipe.metrics.table import rows_in
from ltpipe.run.files import atomic_path

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D1F", "#000000")
MARKERS = "osD^vPX*"
HATCHES = ("", "///", "...", "xx")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#333b44",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e3e7eb",
    "xtick.color": "#333b44",
    "ytick.color": "#333b44",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ltpipe",
}
GROUPS = {row.key: row.title for row in rows_in("groups")}


def plot_class_curve(
    frames: Mapping[str, pd.DataFrame], path: Path, *, title: str, edges: Sequence[float] = BIN_EDGES
) -> Path:
    """Draw AP against the rank of the class by training instances: a dot per class, a line for the running mean.

    Args:
        frames: Per checkpoint label its table of :func:`~ltpipe.metrics.table.per_class_table`.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.
        edges: Training-instance counts to mark.

    Returns:
        The PNG file.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title, "classes by training instances, most frequent first", "AP (%)")
        ranked = None
        for index, (label, frame) in enumerate(frames.items()):
            ranked = frame.sort_values(["train_instances", "category_id"], ascending=[False, True], ignore_index=True)
            shown = ranked[ranked["AP"].notna()]
            rank, ap = shown.index.to_numpy() + 1, 100 * shown["AP"].to_numpy(float)
            window = max(1, len(ap) // 10)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axes.scatter(rank, ap, s=36 if len(ap) < 60 else 6, color=colour, alpha=0.4, linewidths=0, marker=marker)
            mean = pd.Series(ap).rolling(window, center=True, min_periods=1).mean()
            axes.plot(rank, mean, color=colour, linewidth=2, label=label)
        if ranked is not None:
            _mark_counts(axes, ranked["train_instances"].to_numpy(), edges)
            axes.set_xlim(0.5, len(ranked) + 0.5)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, axes, len(frames))
        return save(figure, path)


def plot_group_bars(metrics: Mapping[str, Mapping[str, float | None]], path: Path, *, title: str) -> Path:
    """Draw AP of all classes and of each frequency group, several checkpoints as bars.

    Args:
        metrics: Per checkpoint label its numbers (fractions; None where no class was evaluated).
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title, "", "AP (%)")
        width = 0.82 / max(len(metrics), 1)
        top = max((numbers.get(name) or 0.0 for numbers in metrics.values() for name in GROUPS), default=0.0)
        for index, (label, numbers) in enumerate(metrics.items()):
            places = np.arange(len(GROUPS)) + (index - (len(metrics) - 1) / 2) * width
            values = [numbers.get(name) for name in GROUPS]
            axes.bar(
                places,
                [100 * (value or 0.0) for value in values],
                0.92 * width,
                color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index // len(COLOURS) % len(HATCHES)],
                edgecolor="white",
                linewidth=0,
                label=label,
            )
            for place, value in zip(places, values, strict=True):
                text = "–" if value is None else f"{100 * value:.1f}"
                axes.annotate(
                    text, (place, 100 * (value or 0.0)), (0, 2), textcoords="offset points", ha="center", va="bottom",
                    fontsize=9 if len(metrics) < 5 else 7 if len(metrics) < 7 else 5.5, color="#333b44",
                )  # fmt: skip
        axes.set_xticks(range(len(GROUPS)), [f"{name}\n{meaning}" for name, meaning in GROUPS.items()])
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 110 * top or 1)
        legend_below(figure, axes, len(metrics))
        return save(figure, path)


def plot_forgetting(
    groups: Mapping[str, Sequence[float | None]], phases: Sequence[str], path: Path, *, title: str
) -> Path:
    """Draw the AP of each group of classes after each phase.

    Args:
        groups: Per group one AP per phase (fractions; None before the group is learned or where nothing is evaluated).
        phases: Labels of the horizontal axis.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title, "evaluated after", "AP (%)")
        for index, (label, values) in enumerate(groups.items()):
            heights = [np.nan if value is None else 100 * value for value in values]
            axes.plot(
                range(len(phases)),
                heights,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=7,
                linewidth=2,
                clip_on=False,
                label=label,
            )
        axes.set_xticks(range(len(phases)), phases)
        axes.set_xlim(-0.2, len(phases) - 0.8)
        axes.set_ylim(bottom=0)
        legend_below(figure, axes, len(groups))
        return save(figure, path)


def plot_sweep(rows: pd.DataFrame, option: str, path: Path, *, title: str, marked: bool = False) -> Path:
    """Draw AP of all and of each frequency group against the values of an option.

    Args:
        rows: ``option`` (ascending; thresholds, which are counts, are positive), the names of :data:`GROUPS` as
            fractions, NaN where nothing is evaluated, and ``configured``.
        option: What was varied.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.
        marked: Mark the value of the configured row.

    Returns:
        The PNG file.
    """
    counted = option == "threshold"
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(title, f"{option} (training instances)" if counted else option, "AP (%)")
        shown = {name: meaning for name, meaning in GROUPS.items() if name in rows and rows[name].notna().any()}
        for index, (name, meaning) in enumerate(shown.items()):
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "linewidth": 2}
            axes.plot(rows[option], 100 * rows[name].astype(float), label=f"{name}: {meaning}", **style)
        for value in rows.loc[rows["configured"].astype(bool), option] if marked else ():
            axes.axvline(value, color="#9aa3ad", linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                "chosen", (value, 1), (3, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8, color="#66707a",
            )  # fmt: skip
        if counted:
            axes.set_xscale("log")
        axes.set_xticks(rows[option], [f"{value:g}" for value in rows[option]])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        legend_below(figure, axes, len(shown))
        return save(figure, path)


def plot_affinity(cosine: np.ndarray, groups: Mapping[str, int], path: Path, *, title: str) -> Path:
    """Draw the cosine of every two classes.

    Args:
        cosine: ``(K, K)`` float, group after group.
        groups: Classes per frequency group, in the order of the rows.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title, pad=12)
        image = axes.imshow(cosine, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        edges = np.cumsum([0, *groups.values()])
        middles = (edges[:-1] + edges[1:] - 1) / 2
        for edge in edges[1:-1]:
            axes.axhline(edge - 0.5, color="white", linewidth=0.8)
            axes.axvline(edge - 0.5, color="white", linewidth=0.8)
        axes.set_xticks(middles, list(groups))
        axes.set_yticks(middles, list(groups), rotation=90, va="center")
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="cosine", shrink=0.85)
        return save(figure, path)


def plot_reliability(diagrams: Mapping[str, Mapping[str, Any]], path: Path, *, title: str) -> Path:
    """Draw the share of right detections against their score, one panel for all classes and each frequency group.

    Args:
        diagrams: Per checkpoint label, by group (``all`` and frequency groups), by bin ``count``, mean ``score`` and
            mean ``target``; None in empty bins.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    names = {"all": "all classes", **FREQUENCY_NAMES}
    groups = [name for name in names if any(sum(one[name]["count"]) for one in diagrams.values())] or ["all"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(groups) + 0.6, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            axes.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=1, linestyle=(0, (4, 3)))
            for index, (label, of_group) in enumerate(diagrams.items()):
                bins = pd.DataFrame(of_group[group]).dropna()
                size = 6 + 60 * bins["count"] / max(bins["count"].max(), 1) if len(bins) else 6
                colour = COLOURS[index % len(COLOURS)]
                axes.plot(bins["score"], bins["target"], color=colour, linewidth=1.5, label=label)
                axes.scatter(bins["score"], bins["target"], s=size, color=colour, linewidths=0)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", aspect="equal")
            axes.set_title(names[group], fontsize=10, fontweight="normal")
        panels[0].set_ylabel("share of right detections")
        legend_below(figure, panels[0], len(diagrams))
        return save(figure, path)


def new_figure(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    """Return an empty figure with its axes; ``across`` and ``up`` name them."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, pad=22)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _mark_counts(axes: Axes, descending: np.ndarray, edges: Sequence[float]) -> None:
    """Mark where the class list falls below each number of training instances."""
    for edge in sorted(edges, reverse=True):
        rank = int((descending >= edge).sum())
        if 0 < rank < len(descending):
            axes.axvline(rank + 0.5, color="#9aa3ad", linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"< {edge:g} instances", (rank + 0.5, 1), (3, 3), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color="#66707a",
            )  # fmt: skip


def legend_below(figure: Figure, axes: Axes, entries: int) -> None:
    """Put the legend below the axes."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, max(entries, 1)))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG and PNG; return the PNG file."""
    for suffix in (".svg", ".png"):
        file = path.with_name(path.name + suffix)
        with atomic_path(file) as temporary:
            figure.savefig(temporary, dpi=160, metadata={"Date": None} if suffix == ".svg" else None)
    return file

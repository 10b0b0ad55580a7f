"""The report of an experiment with several seeds: one page over the reports of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from ltpipe.data.tables import write_csv
from ltpipe.metrics.resamples import RESAMPLED
from ltpipe.report import html
from ltpipe.report.differences import CHANCE
from ltpipe.report.html import Column
from ltpipe.report.inputs import IOU_NAMES, MARK, WHO
from ltpipe.report.over_seeds import Measurement, means_table, numbers_table, paired_table
from ltpipe.report.plots import COLOURS, STYLE, new_figure, save
from ltpipe.run.files import atomic_path

SHOWN = ("AP", "AP50", "APr", "APc", "APf", "AP_fixed", "AP_pool")
COMPARED = (*RESAMPLED, "AP_fixed")


def build_seeds_page(
    folder: Path,
    measured: Sequence[Measurement],
    *,
    title: str,
    subtitle: str,
    runs: Mapping[str, str],
    stages: Sequence[tuple[str, Mapping[str, Any]]],
) -> list[Path]:
    """Write ``report.html``, ``summary.csv`` and ``differences.csv`` over seeds, and figures.

    Args:
        folder: Where to write.
        measured: Every checkpoint of every run.
        title: Heading of the page.
        subtitle: One sentence below it.
        runs: Reports of the runs by name, relative to the folder.
        stages: Experiment and record of their finished stages.

    Returns:
        The files written, the page first.
    """
    numbers = numbers_table(measured)
    means, gaps = means_table(numbers), paired_table(numbers, COMPARED)
    write_csv(folder / "summary.csv", means)
    write_csv(folder / "differences.csv", gaps)
    marked = {(one.experiment, one.checkpoint, one.part) for one in measured if one.chosen_here}
    val = numbers[numbers["set"] == "val"]
    figures = {
        kind: plot_seeds(val[val["iou_type"] == kind], folder / "figures" / f"seeds_{kind}", name)
        for kind, name in IOU_NAMES.items()
        if kind in set(val["iou_type"])
    }
    chapters = {
        "means": ("Means over seeds", _means(means, marked, figures)),
        "differences": ("Differences, seed by seed", _differences(gaps)),
        "runs": ("Every seed", _runs(numbers, runs)),
        "provenance": ("Where the numbers come from", _provenance(stages)),
    }
    chapters = {anchor: chapter for anchor, chapter in chapters.items() if chapter[1]}
    bodies = [html.section(anchor, name, *parts) for anchor, (name, parts) in chapters.items()]
    links = {f"#{anchor}": name for anchor, (name, _) in chapters.items()}
    footer = "Written by ltpipe. The numbers of the tables are in summary.csv and differences.csv."
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(html.page(title, subtitle, links, bodies, footer), encoding="utf-8")
    drawn = [png.with_suffix(suffix) for png in figures.values() for suffix in (".png", ".svg")]
    return [folder / name for name in ("report.html", "summary.csv", "differences.csv")] + drawn


def shown_mean(row: Mapping[str, Any]) -> str:
    """Return a mean in percent with half of its interval, ``23.4 ± 1.2``; alone where there is a single seed."""
    mean = f"{100 * row['mean']:.1f}"
    return mean if np.isnan(row["high"]) else f"{mean} ± {100 * (row['high'] - row['mean']):.1f}"


def plot_seeds(numbers: pd.DataFrame, path: Path, what: str) -> Path:
    """Draw AP of every seed as a dot, and the mean as a line, for each checkpoint; return the PNG file."""
    rows = numbers[numbers["metric"] == "AP"]
    groups = list(rows.groupby(["experiment", "checkpoint"], sort=False))
    single = rows["experiment"].nunique() == 1
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(f"AP of every seed, {what}", "", "AP (%)")
        for place, (_, group) in enumerate(groups):
            values = 100 * group["value"].to_numpy(float)
            axes.scatter(np.full(len(values), place), values, s=30, color=COLOURS[0], alpha=0.6, linewidths=0)
            axes.hlines(values.mean(), place - 0.25, place + 0.25, color=COLOURS[1], linewidth=2)
        labels = [checkpoint if single else f"{experiment}: {checkpoint}" for (experiment, checkpoint), _ in groups]
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
        axes.set_ylim(bottom=0)
        return save(figure, path)


def _means(means: pd.DataFrame, marked: set[tuple[str, str, str]], figures: Mapping[str, Path]) -> list[str]:
    text = (
        "Mean over the seeds in percent ± half of its 95 % interval (Student's t over seeds), and the standard "
        "deviation of AP from seed to seed. All seeds are measured on the same images."
    )
    parts = [html.note(text)]
    if marked:
        parts.append(html.note(f"{MARK.strip()} Chosen on the images of this table: the numbers are too good."))
    for part in means["set"].unique():
        for kind, name in IOU_NAMES.items():
            some = means[(means["set"] == part) & (means["iou_type"] == kind)]
            if some.empty:
                continue
            rows = []
            for key, group in some.groupby(["experiment", "checkpoint"], sort=False):
                of = {row["metric"]: row for row in group.to_dict("records")}
                cells = {metric: shown_mean(of[metric]) for metric in SHOWN if metric in of}
                mark = MARK if (*key, part) in marked else ""
                counts = {"seeds": of["AP"]["seeds"], "sd": of["AP"]["sd"]} if "AP" in of else {}
                rows.append({"experiment": key[0], "checkpoint": key[1] + mark, **counts, **cells})
            columns = [*WHO, Column("seeds", "seeds", "count"), *(Column(one, one, "text") for one in SHOWN)]
            columns.insert(4, Column("sd", "sd of AP"))
            parts += [html.heading(f"{name}{'' if part == 'val' else f', {part}'}"), html.table(columns, rows)]
            if part == "val" and kind in figures:
                parts.append(html.figure(figures[kind], f"AP of every seed, {name}; lines are means."))
    return parts


def _differences(gaps: pd.DataFrame) -> list[str]:
    parts = []
    for (part, kind), some in gaps.groupby(["set", "iou_type"], sort=False):
        rows = []
        for (first, second), group in some.groupby(["from", "to"], sort=False):
            rows.append({"from": first, "to": second, **{row["metric"]: _gap(row) for row in group.to_dict("records")}})
        columns = [Column("from", "from", "text"), Column("to", "to", "text")]
        columns += [Column(metric, metric, "text") for metric in COMPARED]
        title = f"{IOU_NAMES[kind]}{'' if part == 'val' else f', {part}'}"
        parts += [html.heading(title), html.table(columns, rows)]
    text = (
        "Mean difference of two checkpoints of one seed in percent points, its 95 % interval over the seeds, and how "
        f"many seeds are in favour of the second. A difference whose interval holds zero is marked “{CHANCE}”. The "
        "reports of the runs say what other images would change."
    )
    return [html.note(text), *parts] if parts else []


def _gap(row: Mapping[str, Any]) -> str:
    value, low, high = (html.show(row[key], "points") for key in ("mean", "low", "high"))
    shown = value if row["verdict"] == CHANCE else html.coloured(value, row["verdict"] == "gain")
    told = f"{row['verdict']}<br>{low} to {high}, {row['in_favour']} of {row['seeds']}"
    return html.Markup(f"{shown} <small>{told}</small>")


def _runs(numbers: pd.DataFrame, runs: Mapping[str, str]) -> list[str]:
    parts = [html.listed(html.link(name, target) for name, target in runs.items())]
    some = numbers[(numbers["metric"] == "AP") & (numbers["set"] == "val")]
    seeds = sorted(some["seed"].unique())
    for kind, name in IOU_NAMES.items():
        groups = some[some["iou_type"] == kind].groupby(["experiment", "checkpoint"], sort=False)
        rows = [
            {"experiment": experiment, "checkpoint": checkpoint}
            | {f"s{seed}": value for seed, value in zip(group["seed"], group["value"], strict=True)}
            for (experiment, checkpoint), group in groups
        ]
        if rows:
            columns = [*WHO, *(Column(f"s{seed}", f"seed {seed}") for seed in seeds)]
            parts += [html.heading(f"AP, {name}"), html.table(columns, rows)]
    return parts


def _provenance(stages: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for experiment, stage in stages:
        made_by = stage.get("versions", {}) | ({"commit": stage["commit"]} if stage.get("commit") else {})
        versions = ", ".join(f"{name} {version}" for name, version in made_by.items())
        names = found.setdefault((str(stage.get("device")), versions), [])
        names += [experiment] if experiment not in names else []
    keys = ("machine", "versions", "runs")
    rows = [dict(zip(keys, (*key, ", ".join(names)), strict=True)) for key, names in found.items()]
    columns = [Column(key, key, "text" if key == "machine" else "long") for key in keys]
    text = "Machines and versions of all stages: other machines give other numbers. The runs' reports have every stage."
    return [html.note(text), html.table(columns, rows)] if rows else []

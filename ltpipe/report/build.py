"""The report: one HTML file, a summary table and figures over any number of evaluated checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ltpipe.data.tables import write_csv
from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.class_affinity import Affinity
from ltpipe.metrics.sweeps import Sweep
from ltpipe.metrics.table import flat_intervals, flatten
from ltpipe.report import html
from ltpipe.report.curves import Curve, draw_curves
from ltpipe.report.differences import differences_table
from ltpipe.report.highlights import Highlight
from ltpipe.report.inputs import (
    IOU_NAMES,
    Evaluation,
    Expectation,
    ExperimentCard,
    complete,
    experiments_of,
    phases_of,
)
from ltpipe.report.plot_classes import NAMED, plot_class_bars
from ltpipe.report.plot_errors import draw_errors
from ltpipe.report.plots import (
    COLOURS,
    plot_affinity,
    plot_class_curve,
    plot_forgetting,
    plot_group_bars,
    plot_reliability,
    plot_sweep,
)
from ltpipe.report.sections import all_sections
from ltpipe.run.files import atomic_path

__all__ = ["Curve", "Evaluation", "Expectation", "ExperimentCard", "Sweep", "build_report", "summary_table"]


def build_report(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    *,
    title: str,
    subtitle: str = "",
    cards: Sequence[ExperimentCard] = (),
    expectations: Sequence[Expectation] = (),
    sweeps: Sequence[Sweep] = (),
    affinities: Sequence[Affinity] = (),
    curves: Sequence[Curve] = (),
    highlights: Sequence[Highlight] = (),
    further: Sequence[Evaluation] = (),
) -> list[Path]:
    """Write ``report.html``, ``summary.csv``, ``differences.csv`` if checkpoints compare, and figures (PNG and SVG).

    Args:
        folder: Where to write.
        evaluations: In the order in which they should appear: experiments together, checkpoints in order of training.
        title: Heading of the page.
        subtitle: One sentence below it.
        cards: Methods, schedules and provenance of the experiments.
        expectations: Published numbers to show beside ours.
        sweeps: Modes and thresholds of checkpoints with two classifiers, and values that were chosen from.
        affinities: Checkpoints whose method compares classes.
        curves: Trainings.
        highlights: Pictures of the page's own experiment.
        further: The same checkpoints on further test sets.

    Returns:
        The files written, the page first.
    """
    folder = Path(folder)
    drawn = folder / "figures"
    figures = draw_figures(drawn, evaluations) | draw_sweeps(drawn, sweeps) | draw_affinities(drawn, affinities)
    figures |= draw_errors(drawn, evaluations) | draw_curves(drawn, curves)
    write_csv(folder / "summary.csv", summary_table([*evaluations, *further]))
    differences, tables = differences_table(evaluations), ["summary.csv"]
    if len(differences):
        write_csv(folder / "differences.csv", differences)
        tables.append("differences.csv")
    chapters = all_sections(evaluations, cards, expectations, figures, sweeps, affinities, curves, highlights, further)
    bodies = [html.section(anchor, name, *parts) for anchor, (name, parts) in chapters.items()]
    links = {f"#{anchor}": name for anchor, (name, _) in chapters.items()}
    engines = ", ".join(sorted({str(item.metrics["engine"]) for item in evaluations}))
    bands = {item.metrics["boundary_ratio"] for item in evaluations if "boundary_ratio" in item.metrics}
    band = "".join(f" Boundary AP: band of {ratio:g} of the image's diagonal." for ratio in sorted(bands))
    footer = f"Written by ltpipe. Evaluation engine: {engines}.{band} The numbers of the tables are in summary.csv."
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(html.page(title, subtitle, links, bodies, footer), encoding="utf-8")
    pictures = [png.with_suffix(suffix) for png in figures.values() for suffix in (".png", ".svg")]
    return [folder / "report.html", *(folder / name for name in tables), *pictures]


def summary_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return one row per evaluation with every number as a fraction of 1."""
    extra = ("evaluated_classes", "protocol", "max_detections", "engine")
    rows = [
        {"experiment": item.experiment, "checkpoint": item.checkpoint, "set": item.part, "iou_type": item.iou_type}
        | flatten(item.metrics)
        | flat_intervals(item.metrics)
        | {key: item.metrics[key] for key in extra}
        | {"chosen_here": item.chosen_here}
        for item in evaluations
    ]
    return pd.DataFrame(rows)


def draw_figures(folder: Path, evaluations: Sequence[Evaluation]) -> dict[str, Path]:
    """Draw every figure: ``groups.<iou>``, ``bars.<iou>`` or ``classes.<iou>``, ``phases.<experiment>.<iou>``.

    Up to :data:`~ltpipe.report.plot_classes.NAMED` classes have bars with names, more a line through their ranks.
    """
    figures = {}
    for kind, name in IOU_NAMES.items():
        ours = [item for item in evaluations if item.iou_type == kind]
        shown = complete(ours)[: len(COLOURS)]
        if not shown:
            continue
        single = len(experiments_of(shown)) == 1
        labels = [item.checkpoint if single else f"{item.experiment}: {item.checkpoint}" for item in shown]
        bars = dict(zip(labels, (item.metrics for item in shown), strict=True))
        curves = dict(zip(labels, (item.per_class for item in shown), strict=True))
        edges = [item["low"] for item in shown[0].metrics["bins"][1:]]
        path = folder / f"groups_{kind}"
        figures[f"groups.{kind}"] = plot_group_bars(bars, path, title=f"AP by class frequency, {name}")
        path = folder / f"classes_{kind}"
        if len(shown[0].per_class) <= NAMED:
            figures[f"bars.{kind}"] = plot_class_bars(curves, path, title=f"AP per class, {name}")
        elif shown[0].per_class["train_instances"].notna().all():
            figures[f"classes.{kind}"] = plot_class_curve(curves, path, title=f"AP per class, {name}", edges=edges)
        diagrams = {
            label: item.metrics["reliability"]
            for label, item in zip(labels, shown, strict=True)
            if "reliability" in item.metrics
        }
        if diagrams:
            path = folder / f"reliability_{kind}"
            figures[f"reliability.{kind}"] = plot_reliability(diagrams, path, title=f"Scores and precision, {name}")
        for experiment in experiments_of(ours):
            steps = phases_of(ours, experiment)
            if steps:
                path = folder / f"phases_{experiment}_{kind}"
                title = f"{experiment}: AP of each group of classes, {name}"
                labels = [item.checkpoint for item in steps]
                figures[f"phases.{experiment}.{kind}"] = plot_forgetting(_curves(steps), labels, path, title=title)
    return figures


def draw_sweeps(folder: Path, sweeps: Sequence[Sweep]) -> dict[str, Path]:
    """Draw AP against what was varied, where there are several values, by :meth:`~Sweep.key`."""
    figures = {}
    for one in sweeps:
        for kind, name in IOU_NAMES.items():
            curve = one.curve(kind)
            if curve is not None:
                option, rows = curve
                path = folder / f"{one.kind}_{one.experiment}_{one.checkpoint}_{kind}"
                title = f"{one.experiment}, {one.checkpoint}: AP by {option}, {name}"
                figures[one.key(kind)] = plot_sweep(rows, option, path, title=title, marked=bool(one.options))
    return figures


def draw_affinities(folder: Path, affinities: Sequence[Affinity]) -> dict[str, Path]:
    """Draw the cosines of all classes: ``affinity.<experiment>.<checkpoint>``."""
    figures = {}
    for one in affinities:
        frequency = one.table.drop_duplicates("category_id")["frequency"]
        names = reversed(FREQUENCY_NAMES.items())
        groups = {name: int((frequency == letter).sum()) for letter, name in names}
        path = folder / f"affinity_{one.experiment}_{one.checkpoint}"
        title = f"{one.experiment}, {one.checkpoint}: likeness of the classes"
        shown = {name: count for name, count in groups.items() if count}
        figures[f"affinity.{one.experiment}.{one.checkpoint}"] = plot_affinity(one.cosine, shown, path, title=title)
    return figures


def _curves(steps: Sequence[Evaluation]) -> dict[str, list[float | None]]:
    """Return the AP of each phase group, and of all known classes, after each phase."""
    last = steps[-1].phase or 0
    curves: dict[str, list[float | None]] = {"all known classes": [item.metrics["AP"] for item in steps]}
    for number in range(last + 1):
        name = f"t{number}" if number else "b0"
        values = [
            item.metrics["groups"].get(name, {}).get("AP") if (item.phase or 0) >= number else None for item in steps
        ]
        curves[f"{name}: {'base classes' if number == 0 else f'new in phase {number}'}"] = values
    return curves

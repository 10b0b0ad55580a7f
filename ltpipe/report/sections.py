"""The sections of the report: which tables there are, and in plain words what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltpipe.errors import unknown_name
from ltpipe.metrics.class_affinity import Affinity
from ltpipe.metrics.sweeps import Sweep
from ltpipe.metrics.table import flatten
from ltpipe.report import html
from ltpipe.report.curves import Curve, curve_section
from ltpipe.report.highlights import Highlight, highlights_section
from ltpipe.report.html import Column
from ltpipe.report.inputs import (
    IOU_NAMES,
    MARK,
    WHO,
    Evaluation,
    Expectation,
    ExperimentCard,
    complete,
    experiments_of,
    numbers,
    phases_of,
    who,
)
from ltpipe.report.sections_affinity import affinity
from ltpipe.report.sections_classes import changes, classes
from ltpipe.report.sections_context import accounting, data, methods, provenance, terms
from ltpipe.report.sections_numbers import (
    by_kind,
    confidence,
    differences,
    differences_of,
    errors,
    interval,
    limits,
    title_of,
)
from ltpipe.report.sections_sweep import choices, sweep
from ltpipe.report.verdict import verdict

Parts = list[str]
Chapters = dict[str, tuple[str, Parts]]


def all_sections(
    evaluations: Sequence[Evaluation],
    cards: Sequence[ExperimentCard],
    expectations: Sequence[Expectation],
    figures: Mapping[str, Path],
    sweeps: Sequence[Sweep] = (),
    affinities: Sequence[Affinity] = (),
    curves: Sequence[Curve] = (),
    highlights: Sequence[Highlight] = (),
    further: Sequence[Evaluation] = (),
) -> Chapters:
    """Return the sections that have content: anchor to title and parts.

    Args:
        evaluations: Evaluated checkpoints.
        cards: What was done.
        expectations: Published numbers.
        figures: PNG files under the names of :func:`ltpipe.report.build.draw_figures`.
        sweeps: Modes and thresholds of checkpoints with two classifiers, and values that were chosen from.
        affinities: Checkpoints whose method compares classes.
        curves: Trainings.
        highlights: Pictures of the page's own experiment.
        further: The same checkpoints on further test sets.
    """
    chapters: Chapters = {
        "brief": ("In short", verdict(evaluations, cards, sweeps, pictured=bool(highlights))),
        "overview": ("Overview", overview(evaluations, figures)),
        "differences": ("Which differences are more than chance", differences(evaluations)),
        "sets": ("Further test sets", test_sets(further)),
        "published": ("Published numbers beside ours", published(evaluations, expectations)),
        "bins": ("Frequent to rare classes", bins(evaluations, figures)),
        "limits": ("Without competition for places, and across classes", limits(evaluations)),
        "confidence": ("Do scores mean what they say", confidence(evaluations, figures)),
        "errors": ("What goes wrong", errors(evaluations, figures)),
        "pictures": ("What it looks like", highlights_section(highlights)),
        "choices": ("What was chosen, and on which images", choices(sweeps, figures)),
        "sweep": ("Two classifiers, several ways to combine them", sweep(sweeps, figures)),
        "phases": ("What each phase keeps", phases(evaluations, figures)),
        "affinity": ("Which classes are alike", affinity(affinities, figures)),
        "classes": ("Every class", classes(evaluations, figures)),
        "changes": ("Classes that changed most", changes(evaluations)),
        "curves": ("How the trainings went", curve_section(curves, figures)),
        "data": ("The data", data(cards)),
        "methods": ("Methods and schedules", methods(cards)),
        "accounting": ("Which detections counted", accounting(evaluations)),
        "provenance": ("Where the numbers come from", provenance(cards)),
        "terms": ("Terms", terms(evaluations)),
    }
    return {anchor: chapter for anchor, chapter in chapters.items() if chapter[1]}


def overview(evaluations: Sequence[Evaluation], figures: Mapping[str, Path]) -> Parts:
    """Return the main table per IoU type."""
    parts = [
        html.cards(
            [
                (str(len(experiments_of(evaluations))), "experiments"),
                (str(len({(item.experiment, item.checkpoint) for item in evaluations})), "checkpoints"),
                (str(max((len(item.per_class) for item in evaluations), default=0)), "classes"),
                (str(max((item.metrics["evaluated_classes"] for item in evaluations), default=0)), "with ground truth"),
            ]
        ),
        html.note(
            "AP is the headline number, in percent; APr, APc and APf say the same for rare, common and frequent "
            "classes. A method for long tails should raise APr and APc without losing APf. Bold: the best checkpoint "
            "of a column. Grey: checkpoints that do not know all classes yet, judged on those they know; they compare "
            "with nothing else in the table."
        ),
    ]
    if any(item.chosen_here for item in evaluations):
        parts.append(
            html.note(
                f"{MARK.strip()} Something of this checkpoint (options, the step of training that was kept, how often "
                "classes are drawn) was chosen on the images of this table: its numbers are too good."
            )
        )
    for kind, ours in by_kind(evaluations):
        parts += [html.heading(title_of(kind)), main_table(ours)]
        if f"groups.{kind}" in figures:
            caption = f"AP of all, rare, common and frequent classes, {IOU_NAMES[kind]}; complete checkpoints only."
            parts.append(html.figure(figures[f"groups.{kind}"], caption))
    return parts


def main_table(ours: Sequence[Evaluation]) -> str:
    """Return the table of the main numbers on one set of images, of one IoU type."""
    columns = [*WHO, *numbers("overview"), Column("classes", "classes", "count")]
    whole = complete(ours)
    rows = [
        who(item)
        | flatten(item.metrics)
        | {"classes": item.metrics["evaluated_classes"], "partial": item not in whole}
        | {"interval": interval(item, "AP")}
        for item in ours
    ]
    if any(row["interval"] for row in rows):
        columns.insert(len(WHO) + 1, Column("interval", "95 %", "text"))
    return html.table(columns, rows, group="experiment", pale="partial")


def test_sets(further: Sequence[Evaluation]) -> Parts:
    """Return the main numbers of the same checkpoints on further test sets, and what of the differences is chance."""
    parts: Parts = []
    for name in dict.fromkeys(item.part for item in further):
        for kind, ours in by_kind([item for item in further if item.part == name]):
            parts += [html.heading(f"{name}, {IOU_NAMES[kind]}"), main_table(ours), *differences_of(ours)]
    text = (
        "The checkpoints of the table above on other images: nothing was trained or chosen again. Compare inside a "
        "table only; a ranking that holds on several sets is worth more than a difference on one."
    )
    return [html.note(text), *parts] if parts else []


def published(evaluations: Sequence[Evaluation], expectations: Sequence[Expectation]) -> Parts:
    """Return published numbers beside ours.

    Raises:
        UserError: There is no metric of the name that is expected.
    """
    if not expectations:
        return []
    numbers = {(item.experiment, item.checkpoint, item.iou_type): flatten(item.metrics) for item in evaluations}
    rows = []
    for wanted in expectations:
        known = numbers.get((wanted.experiment, wanted.checkpoint, wanted.iou_type), {})
        if known and wanted.metric not in known:
            raise unknown_name("metric", wanted.metric, known, where=f"{wanted.experiment}: report.expected")
        ours = known.get(wanted.metric)
        gap = None if ours is None else 100 * ours - wanted.value
        verdict: str = html.Markup(html.NOTHING)
        if gap is not None:
            inside = abs(gap) <= wanted.tolerance
            verdict = html.coloured(
                "within tolerance" if inside else "above" if gap > 0 else "below", inside or gap > 0
            )
        rows.append(
            {
                "experiment": wanted.experiment,
                "checkpoint": wanted.checkpoint,
                "what": f"{wanted.metric}, {IOU_NAMES.get(wanted.iou_type, wanted.iou_type)}",
                "published": wanted.value / 100,
                "ours": ours,
                "gap": None if gap is None else gap / 100,
                "tolerance": f"± {wanted.tolerance:g}",
                "verdict": verdict,
                "source": wanted.source,
            }
        )
    columns = [
        *WHO,
        Column("what", "number", "text"),
        Column("published", "published"),
        Column("ours", "ours"),
        Column("gap", "difference", "points"),
        Column("tolerance", "tolerance", "text"),
        Column("verdict", "verdict", "text"),
        Column("source", "source", "long"),
    ]
    text = "Percent. The tolerance was set before the run; a dash means that the checkpoint has not been evaluated."
    return [html.note(text), html.table(columns, rows, group="experiment")]


def bins(evaluations: Sequence[Evaluation], figures: Mapping[str, Path]) -> Parts:
    """Return AP over bins of training instances, and the figure of all classes."""
    parts = [
        html.note(
            "Classes in bins by their number of training instances. In brackets: how many classes of the bin have "
            "ground truth in the validation set; a bin of few classes is a noisy number. bAP is the mean of the bins."
        )
    ]
    for kind, ours in by_kind(evaluations):
        labels = list(dict.fromkeys(b["label"] for one in ours for b in one.metrics["bins"] if b["classes"]))
        if not labels:
            continue
        columns = [*WHO, *(Column(label, label, "text") for label in labels), Column("bAP", "bAP", "text")]
        rows = [who(one) | _bin_cells(one.metrics) for one in ours]
        parts += [html.heading(title_of(kind)), html.table(columns, rows, group="experiment")]
        if f"classes.{kind}" in figures:
            caption = (
                f"AP of every class, {IOU_NAMES[kind]}: dots are classes, lines their running mean. From left to right "
                "the classes have fewer and fewer training instances."
            )
            parts.append(html.figure(figures[f"classes.{kind}"], caption))
    return parts if len(parts) > 1 else []


def phases(evaluations: Sequence[Evaluation], figures: Mapping[str, Path]) -> Parts:
    """Return AP by phase group after each phase, per experiment."""
    parts: Parts = []
    for kind, ours in by_kind(evaluations):
        for experiment in experiments_of(ours):
            steps = phases_of(ours, experiment)
            if not steps:
                continue
            names = [name for name in steps[-1].metrics["groups"] if name not in ("base", "old", "new")]
            start = steps[0].metrics["groups"]["b0"]["AP"] if steps[0].phase == 0 else None
            rows = [_phase_row(item, names, start) for item in ours if item.experiment == experiment]
            columns = [Column("checkpoint", "after", "text"), Column("AP", "all known")]
            columns += [Column(name, name) for name in names]
            columns += [Column("old", "old"), Column("new", "new"), Column("forgetting", "forgetting", "points")]
            parts += [html.heading(f"{experiment}, {IOU_NAMES[kind]}"), html.table(columns, rows)]
            key = f"phases.{experiment}.{kind}"
            if key in figures:
                parts.append(
                    html.figure(figures[key], "A line that falls is a group of classes that is being forgotten.")
                )
    text = (
        "Each row is a checkpoint, each column a group of classes by the phase that introduced it. Reading down a "
        "column shows what later phases do to that group. A phase is judged on the classes it knows."
    )
    return [html.note(text), *parts] if parts else []


def _bin_cells(metrics: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {
        item["label"]: html.Markup(f"{html.show(item['AP'], 'percent')} <small>({item['classes']})</small>")
        for item in metrics["bins"]
    }
    star = "" if metrics["bAP_complete"] else " *"
    return cells | {"bAP": html.show(metrics["bAP"], "percent") + star}


def _phase_row(item: Evaluation, names: Sequence[str], start: float | None) -> dict[str, Any]:
    groups = {name: group["AP"] for name, group in item.metrics["groups"].items()}
    base = groups.get("b0")
    lost = None if base is None or start is None or item.phase == 0 else base - start
    chosen = {name: groups.get(name) for name in (*names, "old", "new")}
    return {"checkpoint": item.checkpoint, "AP": item.metrics["AP"], "forgetting": lost, **chosen}

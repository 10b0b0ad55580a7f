"""The sections of the report on further numbers: differences and chance, limits per class, kinds of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltpipe.frequency import FREQUENCY_NAMES
from ltpipe.metrics.error_names import KINDS
from ltpipe.metrics.resamples import COUNT, RESAMPLED, Difference
from ltpipe.metrics.table import Section, flatten
from ltpipe.report import html
from ltpipe.report.differences import CHANCE, called, compared, naming, pairs
from ltpipe.report.html import Column
from ltpipe.report.inputs import IOU_NAMES, WHO, Evaluation, complete, numbers, who

CONFUSIONS_SHOWN = 15
Parts = list[str]


def by_kind(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[Evaluation]]]:
    """Return the evaluations of boxes, masks and boundaries, those that there are."""
    groups = [(kind, [item for item in evaluations if item.iou_type == kind]) for kind in IOU_NAMES]
    return [(kind, items) for kind, items in groups if items]


def title_of(kind: str) -> str:
    """Return the heading of an IoU type."""
    return IOU_NAMES[kind].capitalize()


def interval(item: Evaluation, key: str) -> str | None:
    """Return the interval of a number, in percent."""
    ends = (item.metrics.get("intervals") or {}).get(key)
    return None if ends is None else " to ".join(html.show(end, "percent") for end in ends)


def differences(evaluations: Sequence[Evaluation]) -> Parts:
    """Return checkpoints compared two by two."""
    parts: Parts = []
    for kind, ours in by_kind(evaluations):
        table = differences_of(ours)
        parts += [html.heading(title_of(kind)), *table] if table else []
    text = (
        "Differences in percent points, with their 95 % intervals, which come from drawing the validation images again "
        f"({COUNT:,} times, with replacement, the same draws for both), and the share of the draws in favour of the "
        f"second. A difference whose interval holds zero is marked “{CHANCE}”: with other images of the same kind "
        "it may vanish or turn. The interval knows of the images alone; another seed of training moves numbers as well."
    )
    return [html.note(text), *parts] if parts else []


def differences_of(ours: Sequence[Evaluation]) -> Parts:
    """Return the table of checkpoints compared two by two, of one set of images and one IoU type; or nothing."""
    rows, name = [], naming(ours)
    for first, second in pairs(ours):
        cells = {key: _difference(one) for key, one in compared(first, second).items()}
        rows.append({"from": name(first), "to": name(second), **cells})
    shown = [key for key in RESAMPLED if any(key in row for row in rows)]
    columns = [Column("from", "from", "text"), Column("to", "to", "text"), *(Column(key, key, "text") for key in shown)]
    return [html.table(columns, rows)] if rows else []


def _difference(one: Difference) -> str:
    said = called(one)
    value, low, high = (html.show(number, "points") for number in (one.value, one.low, one.high))
    text = f"{low} to {high}, {100 * one.in_favour:.0f} %"
    if said == CHANCE:
        return html.Markup(f"{value} <small>{CHANCE}<br>{text}</small>")
    return html.Markup(f"{html.coloured(value, said == 'gain')} <small>{said}<br>{text}</small>")


def limits(evaluations: Sequence[Evaluation]) -> Parts:
    """Return AP-fixed and AP-pool beside AP."""
    parts = _further("limits", evaluations, [Column("AP", "AP")])
    if not parts:
        return []
    text = (
        "Where AP moves and AP_fixed does not, no class is detected any better: its scores were moved against those of "
        "other classes, so that other detections take the limited places of an image. AP_pool says whether a score "
        "means the same in every class; more for rare classes at its cost is a boost that overshoots."
    )
    few = {
        (item.metrics["per_class_limit"], item.metrics["classes_below_limit"], len(item.per_class))
        for item in evaluations
        if "per_class_limit" in item.metrics
    }
    limit = max(one[0] for one in few)
    counts = sorted({f"{below} of {number}" for _, below, number in few})
    kept = sorted({item.metrics["per_image_limit"] or 0 for item in evaluations if "per_image_limit" in item.metrics})
    made = "If a detector keeps only so many detections per image, AP_fixed is that of such a run, and too low."
    if kept == [0]:
        made = "The detections were made for it, without a limit per image."
    elif kept:
        made = (
            f"AP_fixed of a run that keeps {' or '.join(map(str, filter(None, kept)))} detections per image: it may be "
            "too low; evaluate.detections_per_class makes detections without that limit."
        )
    more = (
        f"The best {limit:,} detections of every class count, whatever the image; {', '.join(counts)} classes have "
        f"fewer. {made}"
    )
    return [html.note(text), html.note(more), *parts]


def confidence(evaluations: Sequence[Evaluation], figures: Mapping[str, Path]) -> Parts:
    """Return how far scores are from what they promise."""
    parts = _further("confidence", evaluations, [])
    for kind in IOU_NAMES:
        if f"reliability.{kind}" in figures:
            caption = (
                f"Share of right detections against their score, {IOU_NAMES[kind]}: on the diagonal scores are "
                "probabilities, below it the detector is too sure, above it not sure enough. Larger dots: more "
                "detections."
            )
            parts.append(html.figure(figures[f"reliability.{kind}"], caption))
    text = (
        "Distance of scores from what they promise, in percent points: the smaller the better. Most detections have "
        "low scores, and weigh most; a group may be far off where few of them are."
    )
    return [html.note(text), *parts] if parts else []


def errors(evaluations: Sequence[Evaluation], figures: Mapping[str, Path]) -> Parts:
    """Return what each kind of error costs in each frequency group, and which classes are taken for which."""
    parts: Parts = []
    groups = {"": "all", **{f"_{letter}": name for letter, name in FREQUENCY_NAMES.items()}}
    for kind, ours in by_kind(evaluations):
        rows = [
            who(item) | {"group": name} | {one: item.metrics.get(f"dAP_{one}{suffix}") for one in KINDS}
            for item in complete(ours)
            for suffix, name in groups.items()
        ]
        rows = [row for row in rows if any(row[one] is not None for one in KINDS)]
        columns = [*WHO, Column("group", "classes", "text"), *(Column(one, one, "points") for one in KINDS)]
        if rows:
            parts += [html.heading(title_of(kind)), html.table(columns, rows, group="checkpoint")]
        if f"errors.{kind}" in figures:
            caption = "The kinds do not add up to all that is lost: mending one changes what the others cost."
            parts.append(html.figure(figures[f"errors.{kind}"], caption))
    name = naming(evaluations)
    shown = [item for item in complete(evaluations) if item.confusions is not None and len(item.confusions)]
    lists = [
        html.folded(f"{name(item)}, {IOU_NAMES[item.iou_type]}: which classes are confused", _confusions(item))
        for item in shown
    ]
    if len(shown) == 1:
        lists = [html.heading("Which classes are confused"), _confusions(shown[0])]
    text = (
        "AP50 that would be gained, in percent points, if all errors of a kind were mended and nothing else; for a "
        "group of classes, what these would gain. "
        + "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
        + ". A method for long tails should lower Cls of the rare classes. What each kind costs a class is in "
        "per_class.csv. An object is taken for the class of the best-scored detection on it."
    )
    return [html.note(text), *parts, *lists] if parts else []


def _confusions(item: Evaluation) -> str:
    assert item.confusions is not None
    pairs = item.confusions.head(CONFUSIONS_SHOWN).to_dict("records")
    rest = len(item.confusions) - len(pairs)
    more = [f"and {rest:,} other pairs: confusions.csv"] if rest else []
    return html.listed([*(html.Markup(_confusion(row)) for row in pairs), *more])


def _confusion(row: dict[str, Any]) -> str:
    times = "once" if row["count"] == 1 else "twice" if row["count"] == 2 else f"{row['count']:,} times"
    return f"{html.strong(row['meant'])} taken for {html.strong(row['taken_for'])} {times}"


def _further(section: Section, evaluations: Sequence[Evaluation], before: Sequence[Column]) -> Parts:
    """Return the table of a section for the evaluations that have its numbers; empty columns are left out."""
    parts: Parts = []
    for kind, ours in by_kind(evaluations):
        whole = complete(ours)
        rows = [who(item) | flatten(item.metrics) | {"partial": item not in whole} for item in ours]
        columns = [column for column in numbers(section) if any(row.get(column.key) is not None for row in rows)]
        rows = [row for row in rows if any(column.key in row for column in columns)]
        if rows and columns:
            table = html.table([*WHO, *before, *columns], rows, group="experiment", pale="partial")
            parts += [html.heading(title_of(kind)), table]
    return parts

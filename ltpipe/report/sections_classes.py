"""The sections of the report on single classes: a table to sort and search, and those that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.report import html
from ltpipe.report.html import Column
from ltpipe.report.inputs import IOU_NAMES, Evaluation, complete, experiments_of, phases_of

CHANGES_SHOWN = 8
CHECKPOINTS_SHOWN = 8
Parts = list[str]


def headline(evaluations: Sequence[Evaluation]) -> str:
    """Return on what single classes are shown: masks if they are measured."""
    return max({item.iou_type for item in evaluations}, key=("boundary", "bbox", "segm").index)


def compared_pair(mine: Sequence[Evaluation]) -> tuple[Evaluation, Evaluation] | None:
    """Return what a comparison of classes is between: the last phase, or base, and the last calibrated checkpoint.

    Without a calibrated one, or with measured files instead of checkpoints, the first and the last.

    Args:
        mine: Evaluations of one experiment on one IoU type, in order of training.
    """
    whole = complete(mine)
    trained, calibrated = ([item for item in whole if (item.phase is None) == flag] for flag in (False, True))
    if trained and calibrated:
        return trained[-1], calibrated[-1]
    shown = whole if len(whole) > 1 else list(mine)
    return (shown[0], shown[-1]) if len(shown) > 1 else None


def classes(evaluations: Sequence[Evaluation], figures: Mapping[str, Path]) -> Parts:
    """Return every class with the AP of every complete checkpoint, and the figure of all classes."""
    kind = headline(evaluations)
    shown = complete([item for item in evaluations if item.iou_type == kind])[-CHECKPOINTS_SHOWN:]
    several = len(experiments_of(shown)) > 1
    columns = [Column("name", "class", "text"), Column("frequency", "group", "text")]
    columns += [Column("train_images", "images", "count"), Column("train_instances", "instances", "count")]
    columns += [Column("phase", "phase", "count")] if phases_of(evaluations, shown[-1].experiment) else []
    rows = {
        number: {key: _plain(value) for key, value in row.items()}
        for number, row in _by_id(shown[-1].per_class).items()
    }
    for place, item in enumerate(shown):
        name = f"{item.experiment}: {item.checkpoint}" if several else item.checkpoint
        columns.append(Column(f"AP{place}", f"AP {name}"))
        for number, row in _by_id(item.per_class).items():
            if number in rows:
                rows[number][f"AP{place}"] = row["AP"]
    pair = compared_pair([item for item in shown if item.experiment == shown[-1].experiment])
    if pair is not None:
        before, after = (_by_id(item.per_class) for item in pair)
        columns.append(Column("change", f"{pair[0].checkpoint} → {pair[1].checkpoint}", "points"))
        for number, row in rows.items():
            row["change"] = after[number]["AP"] - before[number]["AP"] if number in before and number in after else None
    text = (
        f"AP on {IOU_NAMES[kind]}, in percent. A heading sorts, the field searches names and groups. A dash: no "
        "object in the validation set. AP of single classes rests on few objects: read it as a place to look."
    )
    parts = [html.note(text), html.table(columns, list(rows.values()), name="per-class")]
    if f"bars.{kind}" in figures:
        parts.append(html.figure(figures[f"bars.{kind}"], "AP of every class, the most frequent first."))
    return parts


def changes(evaluations: Sequence[Evaluation]) -> Parts:
    """Return the classes with the largest gains and losses, from the last phase to the calibrated checkpoint."""
    parts: Parts = []
    for experiment in experiments_of(evaluations):
        mine = [item for item in evaluations if item.experiment == experiment]
        kind = headline(mine)
        pair = compared_pair([item for item in mine if item.iou_type == kind])
        if pair is None:
            continue
        before = pair[0].per_class[["category_id", "AP"]].rename(columns={"AP": "before"})
        joined = pair[1].per_class.merge(before, on="category_id").dropna(subset=["AP", "before"])
        joined["change"] = joined["AP"] - joined["before"]
        ranked = joined.sort_values(["change", "category_id"], ascending=[False, True])
        gains, losses = ranked[ranked["change"] > 0], ranked[ranked["change"] < 0][::-1]
        tables = [_change_table(*one) for one in (("gains", gains), ("losses", losses)) if len(one[1])]
        if tables:
            title = f"{experiment}, {IOU_NAMES[kind]}: {pair[0].checkpoint} to {pair[1].checkpoint}"
            parts += [html.heading(title), html.side_by_side(*tables)]
    text = (
        "AP of single classes rests on few validation objects: read these as places to look, not as results. "
        "Instances are those of the training set."
    )
    return [html.note(text), *parts] if parts else []


def _by_id(table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    return {int(row["category_id"]): row for row in table.to_dict("records")}


def _plain(value: Any) -> Any:
    """Return counts, which are floats where some are missing, as whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _change_table(title: str, frame: pd.DataFrame) -> str:
    columns = [
        Column("name", f"largest {title}", "text"),
        Column("frequency", "group", "text"),
        Column("train_instances", "instances", "count"),
        Column("before", "before"),
        Column("AP", "after"),
        Column("change", "change", "points"),
    ]
    rows = [
        {key: _plain(value) if key == "train_instances" else value for key, value in row.items()}
        for row in frame.head(CHANGES_SHOWN).to_dict("records")
    ]
    return html.table(columns, rows)

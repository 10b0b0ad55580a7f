"""The section of the report on methods that work between classes: which classes they take to be alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ltpipe.metrics.class_affinity import Affinity
from ltpipe.report import html
from ltpipe.report.html import Column

ROWS_SHOWN = 25


def affinity(affinities: Sequence[Affinity], figures: Mapping[str, Path]) -> list[str]:
    """Return the classes most like each of the rarest ones, and the figure of all pairs.

    Args:
        affinities: Checkpoints whose method compares classes.
        figures: PNG files; the matrices are named ``affinity.<experiment>.<checkpoint>``.
    """
    if not affinities:
        return []
    parts = [
        html.note(
            "Cosines between the classes, as a method that works between them sees them: CRAT compares the gradient "
            "energies of their box regressors. A class listed beside a rare one lends it its samples. Effective: over "
            "how many classes a sample of the class spreads its weights. All classes are in affinity.csv, all cosines "
            "in affinity.npz, beside the checkpoint's metrics."
        )
    ]
    for one in affinities:
        parts.append(html.heading(f"{one.experiment}: {one.checkpoint}"))
        figure = figures.get(f"affinity.{one.experiment}.{one.checkpoint}")
        if figure is not None:
            parts.append(html.figure(figure, "Every class against every other, most frequent first."))
        classes = one.table.drop_duplicates("category_id").sort_values("train_instances", kind="stable")
        shown = classes.head(ROWS_SHOWN)
        columns = [
            Column("name", f"the {len(shown)} classes with the fewest instances", "text"),
            Column("frequency", "group", "text"),
            Column("train_instances", "instances", "count"),
            Column("effective", "effective", "text"),
            Column("neighbours", "most alike (cosine)", "long"),
        ]
        parts.append(html.table(columns, [_row(one.table, row) for row in shown.to_dict("records")]))
    return parts


def _row(table: pd.DataFrame, row: Mapping[Any, Any]) -> dict[str, object]:
    near = table[(table["category_id"] == row["category_id"]) & table["rank"].notna()]
    words = [f"{name} ({cosine:.2f})" for name, cosine in zip(near["neighbour"], near["cosine"], strict=True)]
    return {**row, "effective": f"{row['effective']:.1f}", "neighbours": ", ".join(words) or "none seen in training"}

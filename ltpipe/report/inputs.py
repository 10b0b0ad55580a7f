"""What the report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ltpipe.checkpoint_ids import phase_of
from ltpipe.metrics.resamples import Resamples
from ltpipe.metrics.table import Section, rows_in
from ltpipe.report.html import Column

IOU_NAMES = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries"}
WHO = (Column("experiment", "experiment", "text"), Column("checkpoint", "checkpoint", "text"))
MARK = " \u2020"
"""Behind the name of a checkpoint that was chosen on the images it is measured on."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One checkpoint, measured on boxes, masks or boundaries.

    Attributes:
        experiment: Name of the experiment.
        checkpoint: ``base``, ``phase<k>`` or the name of a calibrator.
        metrics: What :func:`~ltpipe.metrics.table.summarize` returns.
        per_class: What :func:`~ltpipe.metrics.table.per_class_table` returns.
        confusions: Which classes are taken for which, most often first, columns ``meant``, ``taken_for``, ``count``;
            None: not measured.
        resamples: Its numbers on resamples of the images; None: not measured.
        chosen_here: Whether anything of it was chosen on the images that it is measured on.
        part: Part of the data that it is measured on: ``val``, or a further test set.
    """

    experiment: str
    checkpoint: str
    metrics: Mapping[str, Any]
    per_class: pd.DataFrame
    confusions: pd.DataFrame | None = None
    resamples: Resamples | None = None
    chosen_here: bool = False
    part: str = "val"

    @property
    def iou_type(self) -> str:
        """``bbox``, ``segm`` or ``boundary``."""
        return str(self.metrics["iou_type"])

    @property
    def phase(self) -> int | None:
        """Phase of the checkpoint, 0 for ``base``; None for a calibrated one."""
        return phase_of(self.checkpoint)


@dataclass(frozen=True)
class Expectation:
    """A published number.

    Attributes:
        experiment: Experiment it is compared with.
        checkpoint: Checkpoint it is compared with.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        metric: A name of :func:`~ltpipe.metrics.table.flatten`, e.g. ``APr`` or ``bin/0-10``.
        value: In percent, as papers print it.
        tolerance: Accepted difference, in percentage points.
        source: Where it was published.
    """

    experiment: str
    checkpoint: str
    iou_type: str
    metric: str
    value: float
    tolerance: float
    source: str


@dataclass(frozen=True)
class ExperimentCard:
    """What was done in one experiment.

    Attributes:
        name: Name.
        description: One sentence.
        methods: What was chosen for each part, e.g. ``{"loss": "seesaw (p = 0.8)"}``.
        schedules: One row per training stage, all with the same keys, e.g. ``stage, length, batch size``.
        stages: Content of the ``stage.json`` files, in order of execution.
        data: What there is in each part of the data set and what looked odd, in sentences.
        epochs: Passes over the images in the base training; None: not trained here.
        iterations: Its length.
    """

    name: str
    description: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)
    schedules: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
    epochs: float | None = None
    iterations: int | None = None


def complete(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations that know all classes any of the given ones knows: only these compare fairly."""
    most = max((len(item.per_class) for item in evaluations), default=0)
    return [item for item in evaluations if len(item.per_class) == most]


def experiments_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the names of the experiments, in order of appearance."""
    return list(dict.fromkeys(item.experiment for item in evaluations))


def phases_of(evaluations: Sequence[Evaluation], experiment: str) -> list[Evaluation]:
    """Return the checkpoints of an experiment that are phases, in order; empty unless there are at least two."""
    found = [item for item in evaluations if item.experiment == experiment and item.phase is not None]
    found = sorted((item for item in found if item.metrics["groups"]), key=lambda item: item.phase or 0)
    return found if len(found) > 1 else []


def numbers(section: Section) -> list[Column]:
    """Return a column for each number that a table of the page shows."""
    kinds = {row.key: "percent" if row.format == "error" else row.format for row in rows_in(section)}
    return [Column(row.key, row.key, kinds[row.key], best=row.format == "percent") for row in rows_in(section)]


def who(item: Evaluation) -> dict[str, Any]:
    """Return the cells of the columns :data:`WHO`; what was chosen on the images it is measured on is marked."""
    return {"experiment": item.experiment, "checkpoint": item.checkpoint + (MARK if item.chosen_here else "")}

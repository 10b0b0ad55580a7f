"""``index``: annotation JSON to columnar stores and class statistics, once per data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltpipe.data.convert import build_store
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.tables import write_csv
from ltpipe.errors import UserError
from ltpipe.files import move
from ltpipe.spec.digest import stage_slice
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.stages._run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Build the stores of both parts of the experiment's data set; both replace older ones, or neither."""
    data = exp.dataset
    makers = ("toy-data", "toy-data:val") if data.generate is not None else ("dataset.train", "dataset.val")
    with stage_run(
        "index",
        paths.dataset,
        experiment=exp.name,
        settings=stage_slice(exp, "index"),
        seed=0,
        inputs=dict(zip(makers, (data.train.annotations, data.val.annotations), strict=True)),
    ) as stage:
        for part, source in (("train", data.train), ("val", data.val)):
            folder = stage.work / part
            build_store(source.annotations, folder, fmt=data.format, image_folder=source.images)
            write_csv(folder / "statistics.csv", class_statistics(AnnotationStore.open(folder)))
        _same_classes(exp, stage.work)
        for part in ("train", "val"):
            target = paths.dataset / part
            move(stage.work / part, target)
            stage.outputs += [target / "info.json", target / "statistics.csv"]


def _same_classes(exp: Experiment, folder: Path) -> None:
    """Refuse parts with different classes: labels would not mean the same."""
    train, val = (AnnotationStore.open(folder / part) for part in ("train", "val"))
    unknown = np.setdiff1d(val.category_ids, train.category_ids)
    names = dict(zip(train.category_ids.tolist(), train.category_names, strict=True))
    renamed = [
        f"{c}: {names[c]!r} and {name!r}"
        for c, name in zip(val.category_ids.tolist(), val.category_names, strict=True)
        if c in names and names[c] != name
    ]
    if len(unknown) or renamed:
        raise UserError(
            "training and validation annotations list different classes",
            where=exp.dataset.val.annotations,
            got=f"ids without training class {unknown[:5].tolist()}, ids with two names {renamed[:5]}",
            fix="use annotation files with one common category list",
        )

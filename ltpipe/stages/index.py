"""``index``: annotation JSON to columnar stores and class statistics, once per data set."""

from __future__ import annotations

from pathlib import Path

from ltpipe.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.convert import build_store
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.summary import lines
from ltpipe.data.tables import write_csv
from ltpipe.files import move
from ltpipe.spec.classes import read_class_list
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
        train = None
        for part, source in (("train", data.train), ("val", data.val)):
            folder = stage.work / part
            build_store(
                source.annotations,
                folder,
                fmt=data.format,
                image_folder=source.images,
                faults=data.faults,
                classes=train,
            )
            train = AnnotationStore.open(folder)
            write_csv(folder / "statistics.csv", class_statistics(train))
        _check_class_list(exp, stage.work)
        for part in ("train", "val"):
            target = paths.dataset / part
            move(stage.work / part, target)
            print("\n".join(lines(part, AnnotationStore.open(target).info)))
            stage.outputs += [target / "info.json", target / "statistics.csv"]


def _check_class_list(exp: Experiment, folder: Path) -> None:
    """Refuse a class list with other classes than the annotations: labels would not mean the same."""
    if exp.dataset.class_list is not None:
        listed = Categories.of_records(read_class_list(exp.dataset.class_list), "the class list")
        annotated = Categories.of_store(AnnotationStore.open(folder / "train"), "the training annotations")
        labels_in(listed, annotated, where=exp.dataset.class_list, fix=ONE_LIST)

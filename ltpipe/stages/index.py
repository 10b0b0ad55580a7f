"""``index``: annotation JSON to columnar stores and class statistics, once per data set."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config.class_list import read_class_list
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.summary import check_measurable, lines
from ltpipe.data.tables import write_csv
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import move
from ltpipe.run.records import read_json
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Build the stores of both parts of the experiment's data set; both replace older ones, or neither."""
    data = exp.dataset
    _not_of_another(exp, paths)
    with stage_run("index", exp, paths) as stage:
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
                limits=data.frequency_limits,
            )
            train = AnnotationStore.open(folder)
            write_csv(folder / "statistics.csv", class_statistics(train, data.frequency_limits))
        _check_class_list(exp, stage.work)
        val = AnnotationStore.open(stage.work / "val")
        check_measurable(exp.evaluate.iou_types, data.val.annotations, bool(val.ann_has_mask.any()))
        for part in ("train", "val"):
            target = paths.dataset / part
            move(stage.work / part, target)
            print("\n".join(lines(part, AnnotationStore.open(target).info)))


def _not_of_another(exp: Experiment, paths: Paths) -> None:
    """Refuse to replace a store that another experiment, which describes its data otherwise, has made."""
    by = (read_json(paths.record("index")) or {}).get("experiment", exp.name)
    try:
        other = exp if by == exp.name else exp.beside(by)
    except UserError:  # an experiment that is not there any more needs no store
        return
    if other.dataset.name == exp.dataset.name and other.dataset != exp.dataset:
        raise UserError(
            "two experiments describe one data set differently",
            where=f"{exp.file}: dataset",
            got=f"{exp.dataset.name}, which {by} has indexed with the dataset block of {other.file}",
            fix="give the other data set another name, or let one experiment extend the other",
        )


def _check_class_list(exp: Experiment, folder: Path) -> None:
    """Refuse a class list with other classes than the annotations: labels would not mean the same."""
    if exp.dataset.class_list is not None:
        listed = Categories.of_records(read_class_list(exp.dataset.class_list), "the class list")
        annotated = Categories.of_store(AnnotationStore.open(folder / "train"), "the training annotations")
        labels_in(listed, annotated, where=exp.dataset.class_list, fix=ONE_LIST)

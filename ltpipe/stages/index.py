"""``index``: annotation JSON to columnar stores and class statistics, once per data set."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config.checks import same_data
from ltpipe.config.class_list import read_class_list
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.summary import check_measurable, lines
from ltpipe.data.tables import write_csv
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import PARTS, Paths
from ltpipe.run.files import move
from ltpipe.run.records import read_json
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths, test_set: str | None = None) -> None:
    """Build the store of a further test set; by default those of both parts of the data set, and of all test sets."""
    if test_set is None:
        write_parts(exp, paths)
    for name in exp.evaluate.sets if test_set is None else [test_set]:
        write_set(exp, paths, name)


def write_parts(exp: Experiment, paths: Paths) -> None:
    """Build the stores of both parts of the experiment's data set; both replace older ones, or neither."""
    _not_of_another(exp, paths)
    with stage_run("index", exp, paths) as stage:
        train = _build(exp, "train", stage.work / "train", None)
        val = _build(exp, "val", stage.work / "val", train)
        _check_class_list(exp, stage.work)
        check_measurable(exp.evaluate.iou_types, exp.dataset.val.annotations, bool(val.ann_has_mask.any()))
        for part in PARTS:
            move(stage.work / part, paths.store(part))
            print("\n".join(lines(part, AnnotationStore.open(paths.store(part)).info)))


def write_set(exp: Experiment, paths: Paths, name: str) -> None:
    """Build the store of a further test set, with the classes and frequency groups of the training part."""
    _not_of_another(exp, paths, name)
    with stage_run("index", exp, paths, name) as stage:
        made, source = stage.work / name, exp.evaluate.sets[name]
        store = _build(exp, name, made, AnnotationStore.open(paths.store("train")))
        check_measurable(exp.evaluate.iou_types, source.annotations, bool(store.ann_has_mask.any()))
        for file in sorted(made.iterdir(), key=lambda file: file.name == "info.json"):
            move(file, paths.store(name) / file.name)
        print("\n".join(lines(name, AnnotationStore.open(paths.store(name)).info)))


def _build(exp: Experiment, part: str, folder: Path, classes: AnnotationStore | None) -> AnnotationStore:
    """Build the store of one part, and the statistics of its classes."""
    data, source = exp.dataset, exp.parts()[part]
    build_store(
        source.annotations,
        folder,
        fmt=data.format,
        image_folder=source.images,
        faults=data.faults,
        classes=classes,
        limits=data.frequency_limits,
    )
    store = AnnotationStore.open(folder)
    write_csv(folder / "statistics.csv", class_statistics(store, data.frequency_limits))
    return store


def _not_of_another(exp: Experiment, paths: Paths, test_set: str | None = None) -> None:
    """Refuse to replace a store that another experiment, which describes its data otherwise, has made."""
    by = (read_json(paths.record("index", test_set)) or {}).get("experiment", exp.name)
    try:
        other = exp if by == exp.name else exp.beside(by)
    except UserError:  # an experiment that is not there any more needs no store
        return
    if other.dataset.name == exp.dataset.name:
        same_data(other, exp, test_set, f"{by} has indexed as in {other.file}")


def _check_class_list(exp: Experiment, folder: Path) -> None:
    """Refuse a class list with other classes than the annotations: labels would not mean the same."""
    if exp.dataset.class_list is not None:
        listed = Categories.of_records(read_class_list(exp.dataset.class_list), "the class list")
        annotated = Categories.of_store(AnnotationStore.open(folder / "train"), "the training annotations")
        labels_in(listed, annotated, where=exp.dataset.class_list, fix=ONE_LIST)

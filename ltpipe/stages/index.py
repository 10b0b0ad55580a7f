"""``index``: annotation JSON to columnar stores and class statistics, once per data set."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config.class_list import read_class_list
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_beside
from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.convert import build_store
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.tables import write_csv
from ltpipe.errors import UserError
from ltpipe.pipeline.inputs import STORE
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import move
from ltpipe.run.records import read_json
from ltpipe.run.stage_run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Build the stores of both parts of the experiment's data set; both replace older ones, or neither."""
    data = exp.dataset
    _not_of_another(exp, paths)
    with stage_run("index", exp, paths) as stage:
        for part, source in (("train", data.train), ("val", data.val)):
            folder = stage.work / part
            build_store(source.annotations, folder, fmt=data.format, image_folder=source.images)
            write_csv(folder / "statistics.csv", class_statistics(AnnotationStore.open(folder)))
        _same_classes(exp, stage.work)
        for part in ("train", "val"):
            target = paths.dataset / part
            move(stage.work / part, target)
            stage.outputs += [target / name for name in (*STORE, "statistics.csv")]


def _not_of_another(exp: Experiment, paths: Paths) -> None:
    """Refuse to replace a store that another experiment, which describes its data otherwise, has made."""
    by = (read_json(paths.record("index")) or {}).get("experiment", exp.name)
    try:
        other = exp if by == exp.name else load_beside(exp, by)
    except UserError:  # an experiment that is not there any more needs no store
        return
    if other.dataset.name == exp.dataset.name and other.dataset != exp.dataset:
        raise UserError(
            "two experiments describe one data set differently",
            where=f"{exp.file}: dataset",
            got=f"{exp.dataset.name}, which {by} has indexed with the dataset block of {other.file}",
            fix="give the other data set another name, or let one experiment extend the other",
        )


def _same_classes(exp: Experiment, folder: Path) -> None:
    """Refuse parts with different classes: labels would not mean the same."""
    stores = {part: AnnotationStore.open(folder / part) for part in ("train", "val")}
    train = Categories.of_store(stores["train"], "the training annotations")
    others = {exp.dataset.val.annotations: Categories.of_store(stores["val"], "the validation annotations")}
    if exp.dataset.class_list is not None:
        listed = read_class_list(exp.dataset.class_list)
        others[exp.dataset.class_list] = Categories.of_records(listed, "the class list")
    for where, other in others.items():
        labels_in(other, train, where=where, fix=ONE_LIST)

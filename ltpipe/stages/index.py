"""``index``: annotation JSON to columnar stores and class statistics, once per data set."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config.class_list import read_class_list
from ltpipe.config.experiment import Experiment
from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.convert import build_store
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.tables import write_csv
from ltpipe.pipeline.digests import stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import move
from ltpipe.run.stage_run import stage_run


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
            write_csv(folder / "statistics.csv", class_statistics(AnnotationStore.open(folder), data.frequency_limits))
        _same_classes(exp, stage.work)
        for part in ("train", "val"):
            target = paths.dataset / part
            move(stage.work / part, target)
            stage.outputs += [target / "info.json", target / "statistics.csv"]


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

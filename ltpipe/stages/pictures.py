"""``pictures``: what the data look like, what trainings see, and what complete checkpoints get right and wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.summary import sentences
from ltpipe.data.tables import read_csv
from ltpipe.engine.augmented import Sample, training_samples
from ltpipe.metrics.error_kinds import find_errors
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.table import COUNTS
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stage_files import complete_checkpoints, trained_phases
from ltpipe.report import html
from ltpipe.report.captioned import Shot
from ltpipe.report.picture_pages import shots
from ltpipe.report.pictures import Album, Detected, write_album
from ltpipe.report.shots import SCENE, TRUTH, Outline, Shelf, drawn
from ltpipe.run.files import discard, move
from ltpipe.run.stage_run import stage_run

SAMPLES = 8


def run(exp: Experiment, paths: Paths) -> None:
    """Write the pages of an experiment, together at most :data:`~ltpipe.report.pictures.MEGABYTES`."""
    with stage_run("pictures", exp, paths) as stage:
        made = write_album(stage.work / "pages", album(exp, paths))
        names = [file.relative_to(stage.work / "pages") for file in made]
        for name in names:
            move(stage.work / "pages" / name, stage.folder / name)
        for file in stage.folder.glob("*.html"):
            if file.relative_to(stage.folder) not in names:  # of an earlier run, with more pages
                discard(file)
        stage.outputs += [stage.folder / name for name in names]


def album(exp: Experiment, paths: Paths) -> Album:
    """Return what the pages are made of; checkpoints that do not know all classes yet have none."""
    split = Split.load(paths.split)
    phases = dict(zip(split.order.tolist(), split.phase_of_label.tolist(), strict=True))
    classes = read_csv(paths.statistics("train")).rename(columns=COUNTS)
    if split.num_phases:
        classes = classes.assign(phase=classes["category_id"].map(phases))
    train = Shelf(AnnotationStore.open(paths.store("train")), exp.dataset.train.images)
    val = Shelf(AnnotationStore.open(paths.store("val")), exp.dataset.val.images)
    title = f"{exp.name}: pictures"
    detected = [_detected(paths, val, checkpoint) for checkpoint in complete_checkpoints(exp)]
    augmented = [part for phase in trained_phases(exp) for part in _seen(exp, paths, train, phase)]
    remarks = sentences(train.store.info) if "rarest" in train.store.info else ()
    return Album(title, train, classes, "training objects", remarks, detected, augmented)


def _detected(paths: Paths, shelf: Shelf, checkpoint: str) -> Detected:
    found = Predictions.open(paths.predictions(checkpoint))
    table = read_csv(paths.per_class(checkpoint))
    table = table[table["iou_type"] == table["iou_type"].iloc[0]]  # boxes, if they are measured
    return Detected(checkpoint, shelf, found, find_errors(shelf.store, found, "bbox"), table)


def _seen(exp: Experiment, paths: Paths, shelf: Shelf, phase: int) -> Iterator[str]:
    """Yield the section on what one training sees."""
    samples, checkpoint = list(training_samples(exp, paths, phase, SAMPLES)), f"phase{phase}" if phase else "base"
    text = (
        "The first samples as the losses get them, after all transforms and before normalisation, and the images they "
        "are made from, with all their objects."
    )
    if samples[0].drawn_for is not None:
        text += " The replay list of the phase holds each of them for one class."
    yield html.section(
        checkpoint, f"Training of {checkpoint}", html.note(text), *(_pair(shelf, one) for one in samples)
    )


def _pair(shelf: Shelf, sample: Sample) -> str:
    store = shelf.store
    own = range(int(store.image_ptr[sample.row]), int(store.image_ptr[sample.row + 1]))
    whole = [shelf.object(row, store.category_names[int(store.ann_category[row])]) for row in own]
    masks: Sequence[object] = [None] * len(sample.boxes) if sample.masks is None else list(sample.masks)
    seen = [
        Outline(box, mask, f"+ {name}" if foreign else name, TRUTH)  # type: ignore[arg-type]
        for box, mask, name, foreign in zip(sample.boxes, masks, sample.names, sample.foreign, strict=True)
    ]
    height, width = sample.image.shape[:2]
    caption = f"in training: {width} x {height} pixels, {len(sample.boxes)} objects"
    caption += f", {sum(sample.foreign)} of them (+) from other images" if any(sample.foreign) else ""
    caption += f"; drawn for {sample.drawn_for}" if sample.drawn_for is not None else ""
    before = shelf.scene(sample.row, whole, f"{store.image_file(sample.row)}: {len(whole)} objects")
    return shots([*before, Shot(drawn(sample.image, seen, SCENE), caption)], large=True)

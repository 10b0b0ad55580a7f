"""``ltpipe pictures`` of files: what annotations look like, and what any detector gets right and wrong. No torch."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.formats import annotation_format
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.summary import sentences
from ltpipe.errors import UserError
from ltpipe.frequency import FREQUENCY_LIMITS
from ltpipe.interop.known_ids import KnownIds
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.error_kinds import find_errors
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.table import COUNTS, per_class_table
from ltpipe.metrics.tensors import IouType
from ltpipe.report.pictures import MEGABYTES, Album, Detected, safe_name, write_album
from ltpipe.report.shots import Shelf
from ltpipe.run.outputs import Output

INDEX = "index.html"


def pictures_of_files(
    annotations: Path,
    images: Path,
    detections: Sequence[Path],
    output: Path,
    *,
    train: Path | None = None,
    megabytes: float = MEGABYTES,
) -> Path:
    """Write pages of pictures of an annotation file and of detections.

    Args:
        annotations: COCO- or LVIS-format JSON.
        images: Folder of its images.
        detections: Results files, see :mod:`~ltpipe.interop.read_detections`; the last one is looked at first.
        output: Folder to write to.
        train: Annotations whose counts make frequency groups; default: ``annotations``.
        megabytes: Limit of all pages together.

    Returns:
        The first page.

    Raises:
        UserError: A file cannot be read, or detections and annotations do not belong together.
    """
    named: dict[str, Path] = {}
    for path in detections:
        other = named.setdefault(safe_name(path.name), path)
        if other is not path:
            got = f"{other} and {path}"
            raise UserError("two files of detections have one name", got=got, fix="rename one: names tell them apart")
    written = Output(output, "pictures", inputs=[annotations, images, train, *detections], names=(INDEX,))
    with tempfile.TemporaryDirectory(prefix="ltpipe-pictures-") as name:
        gt = _open(annotations, Path(name) / "gt", images)
        counted = gt if train is None else _open(train, Path(name) / "train")
        if train is not None:
            known = Categories.of_store(counted, "the training annotations")
            labels_in(known, Categories.of_store(gt, f"{annotations}"), where=train, fix=ONE_LIST, part=True)
        limits = None if train is None and gt.info["frequency_from"] == "file" else FREQUENCY_LIMITS
        classes = class_statistics(counted, limits).rename(columns=COUNTS)
        shelf, known_ids = Shelf(gt, images), KnownIds(gt, annotations)
        detected = [
            measured(path.name, shelf, read_results(path, known_ids), class_statistics(counted, limits))
            for path in detections
        ]
        counted_in = "objects" if train is None else "training objects"
        remarks = sentences(gt.info) if train is None else ()  # which speak of groups by the counts of this file
        album = Album(annotations.name, shelf, classes, counted_in, remarks, detected, megabytes=megabytes)
        with written.write() as folder:
            write_album(folder, album)
    return output / INDEX


def measured(name: str, shelf: Shelf, found: Predictions, classes: pd.DataFrame) -> Detected:
    """Return detections with what became of each, and the AP of every class.

    Args:
        name: What they are called.
        shelf: Images and objects.
        found: The detections.
        classes: As :func:`~ltpipe.data.statistics.class_statistics`.
    """
    kind: IouType = "bbox" if found.boxes is not None or not len(found) else "segm"
    tensors = evaluate(shelf.store, found, kind)
    return Detected(name, shelf, found, find_errors(shelf.store, found, kind), per_class_table(tensors, classes))


def _open(path: Path, folder: Path, images: Path | None = None) -> AnnotationStore:
    build_store(path, folder, fmt=annotation_format(path), image_folder=images)
    return AnnotationStore.open(folder)


def run(arguments: Namespace) -> None:
    """Run ``ltpipe pictures --annotations`` with parsed arguments.

    Raises:
        UserError: An option is missing or wrong, or as :func:`pictures_of_files`.
    """
    for name in ("images", "output"):
        if getattr(arguments, name) is None:
            raise UserError(f"--annotations needs --{name}", where="ltpipe pictures")
    if not arguments.megabytes > 0:
        raise UserError("a limit of pages is more than nothing", where="--megabytes", got=arguments.megabytes)
    page = pictures_of_files(
        arguments.annotations,
        arguments.images,
        arguments.detections or [],
        arguments.output,
        train=arguments.train,
        megabytes=arguments.megabytes,
    )
    print(page)

"""``ltpipe score``: detections of any detector to all numbers of the long tail, without experiment and training."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltpipe import __version__
from ltpipe.data.categories import ONE_LIST, Categories, labels_in
from ltpipe.data.formats import annotation_format
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store
from ltpipe.data.tables import write_csv
from ltpipe.errors import UserError, unknown_name
from ltpipe.frequency import BIN_EDGES, FREQUENCY_LIMITS
from ltpipe.interop.known_ids import KnownIds
from ltpipe.interop.read_detections import read_results
from ltpipe.metrics.class_groups import Number
from ltpipe.metrics.confidence import RIGHT
from ltpipe.metrics.long_tail_numbers import measure
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.score_calibration import Grouping
from ltpipe.metrics.table import flat_intervals, flatten
from ltpipe.metrics.tensors import IOU_TYPES, IouType, Protocol
from ltpipe.report.build import build_report
from ltpipe.report.differences import differences_table
from ltpipe.report.html import NOTHING
from ltpipe.report.inputs import Evaluation
from ltpipe.report.terminal import differences_text, numbers_text
from ltpipe.run.files import sha256_file, write_json
from ltpipe.run.outputs import Output
from ltpipe.stages.score_calibrated import HeldOut, settings_of

Numbers = dict[str, dict[str, dict[str, Number]]]
PAGE = ("summary.csv", "per_class.csv", "confusions.csv", "differences.csv", "report.html")
SUFFIXES = (".gz", ".json")


class Scores(Numbers):
    """Numbers by file, IoU type and metric.

    Attributes:
        differences: Every two files compared on the same draws of the images, columns
            :data:`~ltpipe.report.differences.COLUMNS`.
    """

    differences: pd.DataFrame

    @classmethod
    def of(cls, measured: Sequence[Evaluation], stems: Iterable[str]) -> Scores:
        """Return the numbers of these files, in their order."""
        scores = cls({stem: {} for stem in stems})
        scores.differences = differences_table(measured)
        for item in measured:
            scores.setdefault(item.checkpoint, {})[item.iou_type] = flatten(item.metrics) | flat_intervals(item.metrics)
        return scores


@dataclass(frozen=True)
class Options:
    """How detections are measured.

    Attributes:
        protocol: ``lvis`` or ``coco``; None: that of the annotations.
        iou_types: On what; None: on everything a file holds.
        bins: Ascending edges of the bins, in training instances.
        frequency_limits: Most training images of a rare and of a common class.
    """

    protocol: Protocol | None = None
    iou_types: tuple[IouType, ...] | None = None
    bins: tuple[float, ...] = BIN_EDGES
    frequency_limits: tuple[int, ...] = FREQUENCY_LIMITS

    def __post_init__(self) -> None:
        limits = self.frequency_limits
        if len(limits) != 2 or not 0 <= limits[0] < limits[1]:
            allowed = "e.g. 10 100"
            raise UserError("frequency limits must be two ascending counts", got=list(limits), allowed=allowed)
        for kind in self.iou_types or ():
            if kind not in IOU_TYPES:
                raise unknown_name("IoU type", kind, IOU_TYPES)


def score(
    annotations: str | Path,
    detections: str | Path | Sequence[str | Path],
    *,
    train: str | Path | None = None,
    images: str | Path | None = None,
    output: str | Path | None = None,
    protocol: Protocol | None = None,
    iou_types: Sequence[IouType] | None = None,
    bins: Sequence[float] = BIN_EDGES,
    frequency_limits: Sequence[int] = FREQUENCY_LIMITS,
    calibrate: Sequence[str] = (),
    calibrate_by: Grouping = "class",
    calibrate_iou: float = RIGHT,
    held_out_annotations: str | Path | None = None,
    held_out_detections: str | Path | Sequence[str | Path] = (),
    progress: bool = False,
) -> Scores:
    """Measure detections of any framework.

    Args:
        annotations: COCO- or LVIS-format JSON of the images the detections were made on.
        detections: Results files, see :mod:`~ltpipe.interop.read_detections`.
        train: Annotations of the training images: frequency groups and bins count their objects. Without it the groups
            are those that ``annotations`` name, if any, and there are no bins.
        images: Folder of the images; every image of the annotations must be there.
        output: Folder for ``report.html``, ``summary.csv``, ``per_class.csv``, ``confusions.csv`` and figures; None:
            write nothing.
        protocol: ``lvis`` or ``coco``; default: that of the annotations.
        iou_types: Of ``bbox``, ``segm`` and ``boundary``; default: all that a file holds.
        bins: Ascending edges of the bins, in training instances.
        frequency_limits: Most training images of a rare and of a common class.
        calibrate: Also measure with scores calibrated by these methods: ``platt``, ``temperature``, ``beta``,
            ``isotonic``, ``histogram``.
        calibrate_by: A function of the score for every ``class``, every ``frequency`` group, or ``overall``.
        calibrate_iou: Least IoU of a right detection, for the fit.
        held_out_annotations: Images that calibrated scores are fitted on; none of ``annotations`` may be among them.
            Default: half of the images of ``annotations`` are held out, and everything is measured on the other half.
        held_out_detections: A results file on them for each of ``detections``, in the same order.
        progress: Show on the error stream how far reading is.

    Returns:
        ``{stem of the file: {iou_type: {metric: fraction of 1, or None}}}``, names as in ``metrics.json``; with
        calibrated scores the stem is followed by ``+method``. ``differences`` of it compares every two files.

    Raises:
        UserError: A file cannot be read, detections and annotations do not belong together, or an option is wrong.
    """
    settings = settings_of(calibrate, calibrate_by, calibrate_iou, held_out_annotations, held_out_detections)
    kinds, limits = None if iou_types is None else tuple(iou_types), tuple(map(int, frequency_limits))
    options = Options(protocol, kinds, tuple(bins), limits)
    files = _by_stem([detections] if isinstance(detections, str | Path) else detections)
    read = {"annotations": Path(annotations), "train": None if train is None else Path(train)}
    read |= {f"detections:{stem}": path for stem, path in files.items()} | {"held_out": settings.annotations}
    read |= {f"held_out:{stem}": path for stem, path in zip(files, settings.detections, strict=False)}
    written = None if output is None else Output(Path(output), "score", inputs=read.values(), names=PAGE)
    with tempfile.TemporaryDirectory(prefix="ltpipe-score-") as name:
        work = Path(name)
        gt = _open(Path(annotations), work / "val", options, images, progress)
        classes = _classes(gt, Path(annotations), read["train"], work, options, progress)
        opened = partial(_open, options=options, progress=progress)
        held_out = HeldOut(settings, gt, Path(annotations), files, work, opened)
        measured = _measure(gt, classes, Path(annotations), files, options, held_out)
        if written is not None:
            used = vars(options) | settings.facts()
            facts = {"ltpipe": __version__, "inputs": _checksums(read), "options": used}
            with written.write(facts) as folder:
                _write(folder, measured, Path(annotations), files, held_out.sentence())
    return Scores.of(measured, files)


def _by_stem(detections: Sequence[str | Path]) -> dict[str, Path]:
    """Return the files by their names without suffixes."""
    files: dict[str, Path] = {}
    for item in detections:
        path = stem = Path(item)
        for suffix in SUFFIXES:
            stem = stem.with_suffix("") if stem.suffix == suffix else stem
        if stem.name in files:
            got = f"{files[stem.name]} and {path}"
            raise UserError("two files of detections have one name", got=got, fix="rename one: names tell them apart")
        files[stem.name] = path
    if not files:
        raise UserError("no file of detections", fix="name one or several JSON files")
    return files


def _open(
    path: Path, folder: Path, options: Options, images: str | Path | None = None, progress: bool = False
) -> AnnotationStore:
    """Read annotations into a store; the COCO protocol needs no federated lists."""
    fmt = "coco" if options.protocol == "coco" else annotation_format(path)
    build_store(path, folder, fmt=fmt, image_folder=images, progress=progress)
    return AnnotationStore.open(folder)


def _classes(
    gt: AnnotationStore, annotations: Path, train: Path | None, work: Path, options: Options, progress: bool
) -> pd.DataFrame:
    """Return what is known of the training of each class, as :func:`~ltpipe.data.statistics.class_statistics`."""
    if train is None:
        named = gt.info["frequency_from"] == "file"
        ids, names = np.array(gt.category_ids), gt.category_names
        frequency = gt.category_frequency if named else None
        columns = {"category_id": ids, "name": names, "image_count": np.nan, "instance_count": np.nan}
        return pd.DataFrame(columns | {"frequency": frequency})
    store = _open(train, work / "train", Options("coco"), progress=progress)
    known = Categories.of_store(store, "the training annotations")
    labels_in(known, Categories.of_store(gt, f"{annotations}"), where=train, fix=ONE_LIST, part=True)
    return class_statistics(store, options.frequency_limits)


def _measure(
    gt: AnnotationStore,
    classes: pd.DataFrame,
    annotations: Path,
    files: Mapping[str, Path],
    options: Options,
    held_out: HeldOut,
) -> list[Evaluation]:
    """Measure every file on everything it holds, one file in memory at a time."""
    known = KnownIds(gt, annotations)
    measured: dict[str, list[Evaluation]] = {stem: [] for stem in files}
    empty: dict[str, Predictions] = {}

    def evaluations(stem: str, found: Predictions, kinds: Sequence[IouType]) -> list[Evaluation]:
        judged, fitted = held_out.split(stem, found)
        made: list[Evaluation] = []
        for kind in kinds:
            for one in held_out.variants(stem, judged, fitted, kind, classes, options.protocol):
                more: dict[str, Any] = {"protocol": options.protocol, "confidences": one.confidences}
                numbers = measure(held_out.judged, one.predictions, kind, classes, **more)
                metrics, table = numbers.of(classes, bins=options.bins)
                made.append(
                    Evaluation(annotations.stem, one.name, metrics, table, numbers.confusions, numbers.resamples)
                )
        names = list(dict.fromkeys(item.checkpoint for item in made))
        return sorted(made, key=lambda item: names.index(item.checkpoint))

    for stem, path in files.items():
        found = read_results(path, known)
        if not len(found):
            empty[stem] = found
            continue
        held = {"bbox": found.boxes, "segm": found.masks, "boundary": found.masks}
        kinds = options.iou_types or [kind for kind in IOU_TYPES if held[kind] is not None]
        measured[stem] = evaluations(stem, found, kinds)
    # A detector that finds nothing is measured as the others are.
    seen = {item.iou_type for items in measured.values() for item in items}
    for stem, found in empty.items():
        measured[stem] = evaluations(
            stem, found, options.iou_types or [kind for kind in IOU_TYPES if kind in seen] or ["bbox"]
        )
    return [item for items in measured.values() for item in items]


def _checksums(read: Mapping[str, Path | None]) -> dict[str, dict[str, str]]:
    """Return the path and the checksum of every file that was read."""
    return {key: {"path": str(path), "sha256": sha256_file(path)} for key, path in read.items() if path is not None}


def _write(
    folder: Path, measured: Sequence[Evaluation], annotations: Path, files: Mapping[str, Path], more: str
) -> None:
    """Write the page and the tables."""
    text = f"{len(files)} files of detections" if len(files) > 1 else next(iter(files.values())).name
    subtitle = f"Measured by ltpipe {__version__}.{more}"
    build_report(folder, measured, title=f"{annotations.name}: {text}", subtitle=subtitle)
    tables = [item.per_class.assign(iou_type=item.iou_type, checkpoint=item.checkpoint) for item in measured]
    write_csv(folder / "per_class.csv", pd.concat(tables))
    confused = [
        item.confusions.assign(iou_type=item.iou_type, checkpoint=item.checkpoint)
        for item in measured
        if item.confusions is not None
    ]
    if confused:
        write_csv(folder / "confusions.csv", pd.concat(confused))


def run(arguments: Namespace) -> None:
    """Run ``ltpipe score`` with parsed arguments."""
    held_out = [arguments.held_out_annotations, *arguments.held_out_detections]
    read = [arguments.annotations, arguments.train, *arguments.detections, *held_out]
    numbers_file = None if arguments.json is None else Output(arguments.json, "score", inputs=read)
    scores = score(
        arguments.annotations,
        arguments.detections,
        train=arguments.train,
        images=arguments.images,
        output=arguments.output,
        protocol=arguments.protocol,
        iou_types=arguments.iou_types,
        bins=arguments.bins,
        calibrate=arguments.calibrate,
        calibrate_by=arguments.calibrate_by,
        calibrate_iou=arguments.calibrate_iou,
        held_out_annotations=arguments.held_out_annotations,
        held_out_detections=arguments.held_out_detections,
        progress=True,
    )
    print(numbers_text(scores))
    print(differences_text(scores.differences), end="\n" if len(scores.differences) else "")
    if numbers_file is not None:
        with numbers_file.write() as temporary:
            write_json(temporary, scores)
    if any(
        None in (numbers["APr"], numbers["APc"], numbers["APf"])
        for kinds in scores.values()
        for numbers in kinds.values()
    ):
        print(f"\n{NOTHING}: no class with objects to find, or (without --train) no frequency in the annotations")
    if arguments.output is not None:
        print(f"\n{arguments.output / 'report.html'}")

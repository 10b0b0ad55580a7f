"""``evaluate``: detections of a checkpoint on the validation images, and every number computed from them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.checkpoint_ids import measured_on, phase_of
from ltpipe.config.detector import has_masks
from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.summary import check_measurable
from ltpipe.data.tables import read_csv, write_csv
from ltpipe.engine.dataset_configs import test_config
from ltpipe.engine.distributed import is_first, process_group
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import build_dataset, detections, rescored_detections
from ltpipe.engine.model_config import set_limits
from ltpipe.engine.oracle_labels import OracleLabels
from ltpipe.engine.per_class import PerClassLimit, per_class_detections
from ltpipe.engine.roi_heads import Rescore
from ltpipe.engine.shards import in_shards
from ltpipe.engine.stage_models import classes_of, loaded, model_of
from ltpipe.metrics.class_affinity import neighbours, save_affinity
from ltpipe.metrics.fixed_ap import best_per_category
from ltpipe.metrics.long_tail_numbers import Numbers, measure
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import ROWS_PER_BATCH, PredictionWriter, merge_predictions
from ltpipe.metrics.resamples import save_resamples
from ltpipe.metrics.sweeps import sweep_rows, write_sweep
from ltpipe.metrics.tensors import save_tensors
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import discard, write_json
from ltpipe.run.stage_run import stage_run

# Of one image, for each set of scores.
Detections = list[dict[str, Any]]


def run(exp: Experiment, paths: Paths, checkpoint: str) -> None:
    """Measure one checkpoint on the validation images, or on a further test set: ``base@minival``."""
    measurement = checkpoint
    checkpoint, part = measured_on(measurement)
    with stage_run("evaluate", exp, paths, measurement) as stage:
        split = Split.load(paths.split)
        with process_group():
            known, scored, shards, affinity = predict(exp, paths, measurement, split, stage.work)
        if not is_first():
            return
        for one, files in zip(scored, shards, strict=False):
            merge_predictions(files, one.predictions)
        unlimited, per_class = None, exp.evaluate.detections_per_class
        if per_class is not None:
            unlimited = paths.unlimited(measurement)
            merge_predictions(shards[-1], stage.work / "per_class.arrow")
            write_best(stage.work / "per_class.arrow", unlimited, per_class)
            stage.outputs.append(unlimited)
        else:
            discard(paths.unlimited(measurement))
        numbers = measure_all(exp, paths, split, paths.predictions(measurement), known, part=part, unlimited=unlimited)
        for sometimes in (paths.sweep, paths.affinity, paths.confusions, paths.resamples):
            discard(sometimes(measurement))
        stage.outputs += write_tables(exp, paths, measurement, split, numbers)
        save_tensors(paths.tensors(measurement), {kind: one.tensors for kind, one in numbers.items()})
        stage.notes["detections"] = len(Predictions.open(paths.predictions(measurement)))
        if scored[0].names:
            write_sweep_table(exp, paths, measurement, split, known, scored, numbers)
            stage.outputs.append(paths.sweep(measurement))
        # A calibrated checkpoint has its detector's, and it is the same for all images.
        if affinity and part == "val" and checkpoint not in exp.calibrate:
            stage.outputs += write_affinity(paths, checkpoint, split, known, affinity)


@dataclass(frozen=True)
class Scored:
    """Detections from one set of final scores.

    Attributes:
        names: Modes and thresholds of a checkpoint with two classifiers; empty if there is one.
        calibrated_classes: Classes that take the calibrated score, None outside a choice between two.
        predictions: Arrow file.
    """

    names: tuple[tuple[str, float | None], ...]
    calibrated_classes: int | None
    predictions: Path


def predict(
    exp: Experiment, paths: Paths, measurement: str, split: Split, work: Path
) -> tuple[NDArray[np.int64], list[Scored], list[list[Path]], dict[str, NDArray[Any]]]:
    """Write the detections of the checkpoint, in shards.

    Returns:
        The ids of the categories it knows; what the detections will be: first what the checkpoint itself detects, then,
        in the work folder, its other modes; the shards of each, and last those without a limit per image if they are
        asked for; and how alike the classes are to a part of it that says so.
    """
    checkpoint, part = measured_on(measurement)
    fragment, config = described = model_of(exp, paths, split, checkpoint)
    set_limits(config, exp.evaluate)
    num_classes = classes_of(split, checkpoint)
    model: Any = loaded(described, paths, split, checkpoint)
    dataset: Any = build_dataset(test_config(exp, paths, fragment.test_pipeline, num_classes, part))
    scored = [Scored((), None, paths.predictions(measurement))]
    roi_head: Any = getattr(model, "roi_head", None)
    calibrator: Any = getattr(roi_head, "calibrator", None)
    rescore: Rescore | None = None
    if exp.evaluate.oracle_labels:
        rescore = OracleLabels(dataset)
    elif (exp.evaluate.modes or exp.evaluate.thresholds) and hasattr(calibrator, "choices"):
        choices = calibrator.choices(exp.evaluate.modes, exp.evaluate.thresholds)
        files = [paths.predictions(measurement), *(work / f"choice{i}.arrow" for i in range(1, len(choices)))]
        scored = [Scored(c.names, c.from_calibrated(), f) for c, f in zip(choices, files, strict=True)]

        def rescore(found: Any) -> Any:
            return (choice.fuse(found.own_scores, found.calibrated_scores) for choice in choices)

    limit = None
    if exp.evaluate.detections_per_class is not None:
        limit = PerClassLimit(model, exp.evaluate.detections_per_class, num_classes, work)
        rescore = limit.watch

    def images(first: int, stop: int) -> Iterable[Detections]:
        if rescore is not None:
            return rescored_detections(model, dataset, rescore, first, stop)
        return ([image] for image in detections(model, dataset, first=first, stop=stop))

    masks = set(exp.evaluate.iou_types) != {"bbox"} and has_masks(config)
    write = partial(write_predictions, split=split, masks=masks, longer=last_pixel(config))
    names = [f"set{i}.arrow" for i in range(len(scored))]
    shards = in_shards(work, names, len(dataset), images, write)
    if limit is not None:
        again = partial(second_pass, model, dataset, limit)
        shards += in_shards(work, ["per_class.arrow"], len(dataset), again, write)
    # In a cascade that of its last stage, whose boxes are detected.
    parts = roi_head.stage_parts(-1) if hasattr(roi_head, "stage_parts") else ()
    found = (part.class_affinity() for part in parts)
    affinity = {key: value.cpu().numpy() for key, value in next(filter(None, found), {}).items()}
    return split.order[:num_classes], scored, shards, affinity


def second_pass(model: Any, dataset: Any, limit: PerClassLimit, first: int, stop: int) -> Iterator[Detections]:
    """Yield the detections of every image that may be among the best of their class, as one set of scores."""
    limit.start_second_pass()
    yield from ([image] for image in per_class_detections(model, dataset, limit, first, stop))


def write_predictions(
    files: Sequence[Path], images: Iterable[Detections], *, split: Split, masks: bool, longer: int = 0
) -> None:
    """Write the detections of every image, one file per set of scores; ``longer`` is added to the sides of boxes."""
    with ExitStack() as stack:
        writers = [stack.enter_context(PredictionWriter(file, masks=masks)) for file in files]
        for found in images:
            for writer, image in zip(writers, found, strict=True):
                boxes = image["bboxes"]
                writer.append(
                    image["image_id"],
                    split.order[image["labels"]],
                    image["scores"],
                    np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + longer], axis=1),
                    [mask["counts"] for mask in image["masks"]] if masks else None,
                    image["size"],
                )


def write_best(source: Path, target: Path, per_class: int) -> None:
    """Write the best detections of each class, in the order of the source; of equal ones the earlier."""
    found = Predictions.open(source)
    rows = best_per_category(found, per_class)
    with PredictionWriter(target, masks=found.masks is not None) as writer:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            writer.extend(found.take(rows[start : start + ROWS_PER_BATCH]))


def measure_all(
    exp: Experiment,
    paths: Paths,
    split: Split,
    predictions: Path,
    known: NDArray[np.int64],
    *,
    part: str = "val",
    resamples: bool = True,
    unlimited: Path | None = None,
) -> dict[str, Numbers]:
    """Return all numbers by IoU type; ``unlimited``: detections for AP-fixed and AP-pool, made without a limit."""
    gt, classes = AnnotationStore.open(paths.store(part)), class_table(paths, split)
    found, annotations = Predictions.open(predictions), exp.parts()[part].annotations
    # The COCO protocol caps per image and class, at 100, whatever the detector keeps per image.
    cap = exp.evaluate.max_detections if gt.federated else None
    masks = found.masks is not None and bool(gt.ann_has_mask.any())
    measured = [iou_type for iou_type in exp.evaluate.iou_types if iou_type == "bbox" or masks]
    if found.masks is not None and not masks:
        print(f"{annotations}: no object has a mask, only boxes are measured", file=sys.stderr)
    check_measurable(exp.evaluate.iou_types, annotations, masks)
    options: dict[str, Any] = {"max_detections": cap, "category_ids": known, "resamples": resamples}
    if unlimited is not None:
        options |= {"unlimited": Predictions.open(unlimited), "per_category": exp.evaluate.detections_per_class}
    return {kind: measure(gt, found, kind, classes, **options) for kind in measured}


def class_table(paths: Paths, split: Split) -> pd.DataFrame:
    """Return the statistics of the training classes and the phase of each."""
    statistics = read_csv(paths.statistics("train"))
    phases = dict(zip(split.order.tolist(), split.phase_of_label.tolist(), strict=True))
    return statistics.assign(phase=statistics["category_id"].map(phases))


def known_phase(checkpoint: str, split: Split) -> int:
    """Return the phase whose classes a checkpoint knows."""
    phase = phase_of(checkpoint)
    return split.num_phases if phase is None else phase


def write_tables(
    exp: Experiment, paths: Paths, measurement: str, split: Split, numbers: Mapping[str, Numbers]
) -> list[Path]:
    """Write the summary, the per-class table, the confusions and the resamples; return those not always there."""
    classes, phase = class_table(paths, split), known_phase(measured_on(measurement)[0], split)
    summaries, tables = {}, []
    for kind, one in numbers.items():
        summaries[kind], table = one.of(classes, bins=exp.evaluate.bins, phase=phase)
        tables.append(table.assign(iou_type=kind))
        if one.fixed is not None:
            limited = exp.evaluate.detections_per_class is None
            summaries[kind]["per_image_limit"] = exp.evaluate.max_detections if limited else None
    write_json(paths.metrics(measurement), summaries)
    write_csv(paths.per_class(measurement), pd.concat(tables))
    files: list[Path] = []
    confused = [one.confusions.assign(iou_type=kind) for kind, one in numbers.items() if one.confusions is not None]
    if confused:
        write_csv(paths.confusions(measurement), pd.concat(confused))
        files.append(paths.confusions(measurement))
    drawn = {kind: one.resamples for kind, one in numbers.items() if one.resamples is not None}
    if drawn:
        save_resamples(paths.resamples(measurement), drawn)
        files.append(paths.resamples(measurement))
    return files


def write_affinity(
    paths: Paths, checkpoint: str, split: Split, known: NDArray[np.int64], affinity: dict[str, NDArray[Any]]
) -> list[Path]:
    """Write how alike the classes are; return the files."""
    file = paths.affinity(checkpoint)
    nearest, similarity, effective = (affinity[key] for key in ("nearest", "similarity", "effective"))
    table = neighbours(nearest, similarity, effective, known, class_table(paths, split))
    save_affinity(file, table, affinity["cosine"], known)
    return [file, file.with_suffix(".npz")]


def write_sweep_table(
    exp: Experiment,
    paths: Paths,
    measurement: str,
    split: Split,
    known: NDArray[np.int64],
    scored: Sequence[Scored],
    numbers: Mapping[str, Numbers],
) -> None:
    """Write the numbers of all modes and thresholds; those of the first entry are given."""
    checkpoint, part = measured_on(measurement)
    classes, phase = class_table(paths, split), known_phase(checkpoint, split)
    rows: list[dict[str, Any]] = []
    for index, one in enumerate(scored):
        own = measure_all(exp, paths, split, one.predictions, known, part=part, resamples=False) if index else numbers
        metrics = {kind: item.of(classes, bins=exp.evaluate.bins, phase=phase)[0] for kind, item in own.items()}
        rows += sweep_rows(one.names, one.calibrated_classes, metrics, scored[0].names[0])
    write_sweep(paths.sweep(measurement), rows)

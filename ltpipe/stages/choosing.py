"""Options of a calibrator chosen on images: every value is scored from one run of the detector, the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.config.blocks import Choose
from ltpipe.config.choices import swept_options
from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.candidates import CandidateScores
from ltpipe.engine.dataset_configs import test_config
from ltpipe.engine.extra_images import held_out_config
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import build_dataset, rescored_detections
from ltpipe.engine.shards import in_shards
from ltpipe.errors import UserError
from ltpipe.methods.calibration import Calibrator
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import merge_predictions
from ltpipe.metrics.sweeps import CHOSEN_ON, choice_rows
from ltpipe.metrics.table import summarize
from ltpipe.pipeline.paths import Paths
from ltpipe.stages.evaluate import Detections, class_table, write_predictions

Options = dict[str, float]


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        options: The best values.
        rows: Numbers of every value that was tried.
        notes: For the record of the stage.
    """

    options: Options
    rows: list[dict[str, Any]]
    notes: dict[str, Any]


def choose_options(
    exp: Experiment,
    paths: Paths,
    name: str,
    detector: Any,
    described: tuple[Any, Any],
    make: Callable[[Options], Sequence[Calibrator]],
    work: Path,
) -> Choice:
    """Return the options of a calibrator that score best.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        name: Name of the calibrator.
        detector: The detector that is calibrated, in evaluation mode.
        described: The detector file and its model config, of :func:`~ltpipe.engine.stage_models.model_of`.
        make: Makes the calibrators of all stages of the detector with these options.
        work: Folder for the state of a killed run.

    Raises:
        UserError: No value has the number that decides.
    """
    spec = exp.calibrate[name].choose
    assert spec is not None
    tried = swept_options(exp.calibrate[name])
    (fragment, model), split = described, Split.load(paths.split)
    data = held_out_config if spec.on == "holdout" else test_config
    dataset: Any = build_dataset(data(exp, paths, fragment.test_pipeline, split.num_classes))
    scorer = CandidateScores(detector.roi_head, [make(options) for options in tried])
    masks = spec.iou_type == "segm"

    def images(first: int, stop: int) -> Iterable[Detections]:
        return rescored_detections(detector, dataset, scorer.rescore, first, stop, masks)

    write = partial(write_predictions, split=split, masks=masks, longer=last_pixel(model))
    names = [f"value{i}.arrow" for i in range(len(tried))]
    before = detector.roi_head.calibrator
    detector.roi_head.use_calibrator(scorer)
    shards = in_shards(work, names, len(dataset), images, write)
    detector.roi_head.use_calibrator(before)
    numbers = []
    for file, parts in zip(names, shards, strict=True):
        merge_predictions(parts, work / file)
        numbers.append(_measured(exp, paths, spec, split, work / file, split.order, dataset))
    best = _best(exp, name, spec, [one[spec.metric] for one in numbers])
    unseen = exp.base.checkpoint is None and exp.detector.load_from is None
    on = "val" if spec.on == "val" else "holdout" if unseen else "seen"
    rows = choice_rows(tried, numbers, best, images=on, iou_type=spec.iou_type, metric=spec.metric)
    notes = {"chosen": tried[best], "chosen_on": f"{len(dataset)} images: {CHOSEN_ON[on]}"}
    return Choice(tried[best], rows, notes)


def _measured(
    exp: Experiment, paths: Paths, spec: Choose, split: Split, file: Path, known: NDArray[np.int64], dataset: Any
) -> dict[str, Any]:
    """Return every number of one value."""
    gt, found = AnnotationStore.open(paths.store("val" if spec.on == "val" else "train")), Predictions.open(file)
    held = None if spec.on == "val" else gt.image_ids[dataset.rows]
    cap = exp.evaluate.max_detections if gt.federated else None
    tensors = evaluate(gt, found, spec.iou_type, max_detections=cap, category_ids=known, image_ids=held)
    return summarize(tensors, class_table(paths, split), bins=exp.evaluate.bins, phase=split.num_phases)


def _best(exp: Experiment, name: str, spec: Choose, values: Sequence[float | None]) -> int:
    """Return which of the values is largest; the first of equal ones."""
    there = [(value, -index) for index, value in enumerate(values) if value is not None]
    if not there:
        raise UserError(
            "the number that decides cannot be measured on these images",
            where=exp.where(f"calibrate.{name}.choose"),
            got=f"{spec.metric} on {spec.on}: no such object among them",
            fix="choose another metric, or hold out more images (holdout.images_per_class, holdout.largest_share)",
        )
    return -max(there)[1]

"""What the training stages measure while they train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from ltpipe.checkpoint_ids import phase_of
from ltpipe.config.experiment import Experiment
from ltpipe.config.schedules import Schedule
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.dataset_configs import test_config
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.validation import ValidationHook
from ltpipe.metrics.evaluation import evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.predictions_writer import merge_predictions
from ltpipe.metrics.table import summarize
from ltpipe.metrics.tensors import Tensors
from ltpipe.pipeline.paths import Paths
from ltpipe.stages.evaluate import class_table, write_predictions


def validation_hooks(
    exp: Experiment,
    paths: Paths,
    schedule: Schedule,
    model: ConfigDict,
    fragment: ConfigDict,
    *,
    checkpoint: str,
    num_classes: int,
    seed: int,
) -> list[ValidationHook]:
    """Return the hook that a schedule with ``validation`` asks for.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        schedule: That of the stage.
        model: Model config.
        fragment: The detector file.
        checkpoint: What is trained: ``base`` or ``phase<k>``.
        num_classes: Classes of the detector.
        seed: Seed of the stage, and of the part of the images that is looked at.
    """
    spec = schedule.validation
    if spec is None:
        return []
    split, store = Split.load(paths.split), AnnotationStore.open(paths.store("val"))
    dataset: Any = build_dataset(test_config(exp, paths, fragment.test_pipeline, num_classes))
    rows = np.arange(len(dataset))
    if spec.images is not None and spec.images < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, spec.images, replace=False))
    seen = store.of_images(rows)
    kinds = [kind for kind in exp.evaluate.iou_types if kind != "boundary"]
    kinds = [kind for kind in kinds if kind == "bbox" or bool(seen.ann_has_mask.any())]
    masks, longer, classes = "segm" in kinds, last_pixel(model), class_table(paths, split)

    def write(file: Path, images: Iterable[dict[str, Any]]) -> None:
        write_predictions([file], ([image] for image in images), split=split, masks=masks, longer=longer)

    def measure(files: Sequence[Path]) -> dict[str, float | None]:
        merged = files[0].with_name("all.arrow")
        merge_predictions(files, merged)
        found, known = Predictions.open(merged), split.order[:num_classes]
        cap = exp.evaluate.max_detections if seen.federated else None
        tensors: dict[str, Tensors] = {
            kind: evaluate(seen, found, kind, max_detections=cap, category_ids=known) for kind in kinds
        }
        phase = phase_of(checkpoint)
        numbers = {kind: summarize(one, classes, bins=exp.evaluate.bins, phase=phase) for kind, one in tensors.items()}
        return {f"{kind}/{name}": numbers[kind][name] for kind in kinds for name in spec.names}

    best = spec.keep.best if spec.keep != "last" else None
    return [ValidationHook(dataset, rows, spec.every * schedule.accumulate, write, measure, best)]

"""``ltpipe evaluate --cross-check``: a stored evaluation, computed again by the second engine from the detections."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from ltpipe.checkpoint_ids import measured_on
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.metrics.evaluation import SECOND_ENGINE, evaluate
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.tensors import Tensors, differing_categories, load_tensors
from ltpipe.pipeline.stage_options import MEASUREMENT
from ltpipe.stage_command import check_key, experiment_of


def run(arguments: Namespace) -> None:
    """Print what the second engine says.

    Raises:
        UserError: There is no such checkpoint or no evaluation of it, or a cell differs.
    """
    exp, paths = experiment_of(arguments)
    measurement = arguments.checkpoint
    check_key(exp, MEASUREMENT, measurement)
    store = paths.store(measured_on(measurement)[1])
    for line in cross_check(store, paths.predictions(measurement), paths.tensors(measurement)):
        print(line)


def cross_check(store: Path, predictions: Path, tensors: Path) -> Iterator[str]:
    """Demand that the second engine gives the same bits; yield a sentence per IoU type.

    Args:
        store: Annotation store of the images.
        predictions: Arrow file of the detections.
        tensors: What was computed from them, a file of :func:`~ltpipe.metrics.tensors.save_tensors`.

    Raises:
        UserError: A category differs, or there is no evaluation yet.
    """
    stored = load_tensors(tensors)
    gt, found = AnnotationStore.open(store), Predictions.open(predictions)
    for iou_type, first in stored.items():
        if first.info.engine.startswith(f"{SECOND_ENGINE} "):
            yield f"{iou_type}: no second engine knows it"
            continue
        second = _again(gt, found, first)
        if differing := differing_categories(first, second):
            raise UserError(
                "two evaluation engines disagree",
                where=f"{tensors}, {iou_type}",
                got=f"{len(differing)} of {len(first.category_ids)} categories differ, ids {differing[:10]}",
                allowed=f"every cell of {first.info.engine} equal to that of {second.info.engine}",
                fix="evaluate the checkpoint again if detections or annotations have changed since; "
                "otherwise one engine is wrong: compare with the versions in envs/constraints.txt",
            )
        yield f"{iou_type}: {second.info.engine} gives every cell of {first.info.engine}"


def _again(gt: AnnotationStore, found: Predictions, first: Tensors) -> Tensors:
    info = first.info
    return evaluate(
        gt,
        found,
        info.iou_type,
        protocol=info.protocol,
        max_detections=info.max_detections,
        category_ids=first.category_ids,
        engine=SECOND_ENGINE,
    )

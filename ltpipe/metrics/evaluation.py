"""Detections and ground truth to precision and recall: the one door between predictions and every number reported."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ltpipe import __version__
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError, unknown_name
from ltpipe.metrics.contract import Selection, select
from ltpipe.metrics.native_engine import Matches, category_curves, evaluate_columns, match_columns
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.tensors import (
    AREAS,
    BOUNDARY_RATIO,
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    IouType,
    Protocol,
    TensorInfo,
    Tensors,
)

OWN_ENGINE, SECOND_ENGINE = "ltpipe", "vernier"
Engine = Callable[[Selection], tuple[NDArray[np.float64], NDArray[np.float64]]]


def evaluate(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
    category_ids: Sequence[int] | NDArray[np.int64] | None = None,
    image_ids: NDArray[np.int64] | None = None,
    engine: str | None = None,
) -> Tensors:
    """Evaluate detections against ground truth by the official LVIS or COCO protocol.

    Args:
        gt: An annotation store.
        predictions: The detections.
        iou_type: ``bbox``, ``segm`` or ``boundary`` (Boundary IoU, arXiv 2103.16562).
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        max_detections: Default: 300 per image (LVIS), 100 per image and category (COCO); -1 for no cap.
        category_ids: Evaluate only these, e.g. the classes a phase knows.
        image_ids: Evaluate only these images; there are no detections of others.
        engine: ``ltpipe``, the package's own, or ``vernier``, an independent one that must give the same bits; default:
            the own one, and vernier for boundaries, which only it knows.

    Raises:
        UserError: See :func:`~ltpipe.metrics.contract.select`; no such engine, or it cannot do this.
    """
    name = engine or (SECOND_ENGINE if iou_type == "boundary" else OWN_ENGINE)
    selection = select(
        gt,
        predictions,
        iou_type,
        protocol=protocol,
        max_detections=max_detections,
        category_ids=category_ids,
        image_ids=image_ids,
    )
    return run_engine(selection, *_engine(name, iou_type))


def evaluate_matched(
    gt: AnnotationStore,
    predictions: Predictions,
    iou_type: IouType,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
    category_ids: Sequence[int] | NDArray[np.int64] | None = None,
) -> tuple[Tensors, Selection, Matches]:
    """Evaluate boxes or masks as :func:`evaluate` does; also return what matched what."""
    engine, version = _engine(OWN_ENGINE, iou_type)
    assert engine is evaluate_columns
    selection = select(
        gt, predictions, iou_type, protocol=protocol, max_detections=max_detections, category_ids=category_ids
    )
    matches = match_columns(selection)
    return run_engine(selection, lambda _: category_curves(matches, selection), version), selection, matches


def run_engine(selection: Selection, engine: Engine, version: str) -> Tensors:
    """Return what an engine makes of a selection.

    Args:
        selection: Detections and ground truth with every rule applied.
        engine: Returns precision ``(T, R, K, A) float64`` and recall ``(T, K, A) float64``, -1 without ground truth.
        version: Name and version of the engine, for the record.
    """
    with _collector_paused():
        precision, recall = engine(selection)
    ids = selection.gt.category_ids[selection.categories]
    assert precision.shape == (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(ids), len(AREAS)), precision.shape
    ratio = BOUNDARY_RATIO if selection.iou_type == "boundary" else None
    origin = selection.protocol, selection.max_detections, version, selection.counts
    return Tensors(precision, recall, ids, TensorInfo(selection.iou_type, *origin, ratio))


def _engine(name: str, iou_type: IouType) -> tuple[Engine, str]:
    """Return an engine, and its name and version."""
    if name not in (OWN_ENGINE, SECOND_ENGINE):
        raise unknown_name("evaluation engine", name, (OWN_ENGINE, SECOND_ENGINE))
    if name == OWN_ENGINE:
        if iou_type == "boundary":
            raise UserError("the engine knows no boundaries", got=name, allowed=SECOND_ENGINE)
        return evaluate_columns, f"{name} {__version__}"
    try:
        from ltpipe.metrics.vernier_engine import run_vernier
    except ModuleNotFoundError as error:
        if error.name != SECOND_ENGINE:
            raise
        raise UserError(
            "the second evaluation engine is not installed",
            got=f"no package {SECOND_ENGINE}",
            fix=f"pip install {SECOND_ENGINE}; it computes Boundary AP and --cross-check",
        ) from error
    return run_vernier, f"{name} {importlib.metadata.version(name)}"


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Stop Python's cycle collector: it would walk again and again over millions of records that hold no cycle."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()

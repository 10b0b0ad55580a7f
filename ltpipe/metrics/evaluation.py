"""Precision and recall of every category: the one door between predictions and every number that is reported."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.metrics.contract import IouType, Protocol, select
from ltpipe.metrics.ground_truth import GroundTruth
from ltpipe.metrics.native_engine import AREAS, IOU_THRESHOLDS, RECALL_THRESHOLDS
from ltpipe.metrics.predictions import Predictions
from ltpipe.metrics.vernier_engine import BOUNDARY_RATIO, DEFAULT_ENGINES, engine_version, run_engine
from ltpipe.run.files import atomic_path


@dataclass(frozen=True)
class TensorInfo:
    """Where a set of tensors comes from.

    Attributes:
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        protocol: ``lvis`` or ``coco``.
        max_detections: The cap that was applied.
        engine: Name and version.
        counts: Detections and annotations removed by each rule, and used.
        boundary_ratio: Width of the band along contours, as a part of the image's diagonal; None without one.
    """

    iou_type: IouType
    protocol: Protocol
    max_detections: int
    engine: str
    counts: dict[str, int] = field(default_factory=dict)
    boundary_ratio: float | None = None


@dataclass(frozen=True)
class Tensors:
    """Precision and recall at ``T`` IoU thresholds, ``R`` recall levels and ``A`` object sizes for ``K`` categories.

    Attributes:
        precision: ``(T, R, K, A) float64``; -1 where the category has no ground truth of that size.
        recall: ``(T, K, A) float64``; -1 likewise.
        category_ids: ``(K,) int64``, ascending.
        info: Where they come from.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    category_ids: NDArray[np.int64]
    info: TensorInfo


def evaluate(
    gt: GroundTruth,
    predictions: Predictions,
    iou_type: IouType,
    *,
    protocol: Protocol | None = None,
    max_detections: int | None = None,
    category_ids: Sequence[int] | NDArray[np.int64] | None = None,
    engine: str | None = None,
) -> Tensors:
    """Evaluate detections against ground truth by the official LVIS or COCO protocol.

    Args:
        gt: An annotation store, or what :func:`~ltpipe.metrics.ground_truth.read_ground_truth` makes of a JSON file.
        predictions: The detections.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        protocol: Default: ``lvis`` for federated ground truth, else ``coco``.
        max_detections: Default: 300 per image (LVIS), 100 per image and category (COCO); -1 for no cap.
        category_ids: Evaluate only these, e.g. the classes a phase knows.
        engine: ``ltpipe``, ``hotcoco`` or ``vernier``; default: ltpipe, and vernier for boundaries.

    Raises:
        UserError: See :func:`~ltpipe.metrics.contract.select`.
    """
    selection = select(
        gt, predictions, iou_type, protocol=protocol, max_detections=max_detections, category_ids=category_ids
    )
    engine = engine or DEFAULT_ENGINES[iou_type]
    precision, recall = run_engine(engine, selection)
    ids = gt.category_ids[selection.categories]
    assert precision.shape == (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), len(ids), len(AREAS)), precision.shape
    ratio = BOUNDARY_RATIO if iou_type == "boundary" else None
    origin = selection.protocol, selection.max_detections, engine_version(engine), selection.counts
    info = TensorInfo(iou_type, *origin, ratio)
    return Tensors(precision, recall, ids, info)


def differing_categories(first: Tensors, second: Tensors) -> list[int]:
    """Return the ids of categories whose precision or recall differs in any bit; two engines must agree on all."""
    assert np.array_equal(first.category_ids, second.category_ids), "tensors of different category sets"
    precision = (first.precision != second.precision).any(axis=(0, 1, 3))
    recall = (first.recall != second.recall).any(axis=(0, 2))
    return [int(category) for category in first.category_ids[precision | recall]]


def save_tensors(path: str | Path, tensors: Mapping[str, Tensors]) -> None:
    """Write the tensors of one checkpoint, one entry per IoU type, atomically."""
    arrays: dict[str, Any] = {}
    for name, item in tensors.items():
        info = np.array(json.dumps(asdict(item.info)))
        fields = {"precision": item.precision, "recall": item.recall, "category_ids": item.category_ids, "info": info}
        arrays |= {f"{name}.{key}": value for key, value in fields.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **arrays)


def load_tensors(path: str | Path) -> dict[str, Tensors]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [key.removesuffix(".info") for key in file.files if key.endswith(".info")]
            return {
                name: Tensors(
                    file[f"{name}.precision"],
                    file[f"{name}.recall"],
                    file[f"{name}.category_ids"],
                    TensorInfo(**json.loads(str(file[f"{name}.info"]))),
                )
                for name in names
            }
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        fix = "evaluate the checkpoint again"
        raise UserError("cannot read the tensors", where=path, got=error, fix=fix) from error

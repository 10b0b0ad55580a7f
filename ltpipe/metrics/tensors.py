"""Precision and recall of every category: what an engine gives, and everything that is reported is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.arrays import load_arrays, save_arrays
from ltpipe.errors import UserError

IouType = Literal["bbox", "segm", "boundary"]
Protocol = Literal["lvis", "coco"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "boundary")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "s", "m", "l")
AREA_LIMITS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""Least and largest area of each object size, square pixels."""
BOUNDARY_RATIO = 0.02
"""Width of the band along a contour as a part of the image's diagonal: the value of the paper for COCO and LVIS."""


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
    save_arrays(path, arrays, compressed=True)


def load_tensors(path: str | Path) -> dict[str, Tensors]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    fix = "evaluate the checkpoint again"
    arrays, _ = load_arrays(path, kind="file of precision and recall tensors", fix=fix)
    try:
        return {
            name: Tensors(
                arrays[f"{name}.precision"],
                arrays[f"{name}.recall"],
                arrays[f"{name}.category_ids"],
                TensorInfo(**json.loads(str(info))),
            )
            for key, info in arrays.items()
            if (name := key.removesuffix(".info")) != key
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("damaged file of precision and recall tensors", where=path, got=error, fix=fix) from error

"""Ground truth as the evaluation sees it: a protocol that the annotation store meets, and a reader for plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError

Ids = NDArray[np.int64]


class GroundTruth(Protocol):
    """What an evaluation needs of an annotation set of ``I`` images, ``C`` categories and ``A`` annotations.

    Annotations are sorted by image row and keep the order of their file inside an image. Boxes are xywh, in pixels.
    """

    image_ids: Ids  # (I,)
    image_sizes: NDArray[np.int32]  # (I, 2) [height, width]
    category_ids: Ids  # (C,)
    category_names: list[str]
    ann_image: NDArray[np.int32]  # (A,) row of image_ids
    ann_category: NDArray[np.int32]  # (A,) row of category_ids
    ann_bbox: NDArray[np.float64]  # (A, 4)
    ann_area: NDArray[np.float64]  # (A,)
    ann_iscrowd: NDArray[np.bool_]  # (A,)
    ann_ignore: NDArray[np.bool_]  # (A,)
    federated: bool  # LVIS: images list absent and not exhaustively annotated categories

    def segmentation(self, a: int) -> Any:
        """Return the polygons or the run-length mask of annotation ``a`` as the source file held it."""
        ...

    @property
    def ann_has_mask(self) -> NDArray[np.bool_]:
        """``(A,)``, whether an annotation has a mask."""
        ...

    def outlines(self, rows: Ids) -> tuple[Ids, NDArray[np.float64]]:
        """Return the polygons of those of the given annotations that are one polygon each.

        Returns:
            ``(n + 1,)`` places and ``x, y, x, y, ...`` in pixels: annotation ``rows[i]`` is
            ``xy[places[i]:places[i + 1]]``, nothing if it has several polygons or is no polygon.
        """
        ...

    def negative_categories(self, i: int) -> Ids:
        """Return the ids of the categories verified to be absent from image row ``i``."""
        ...

    def not_exhaustive_categories(self, i: int) -> Ids:
        """Return the ids of the categories of which image row ``i`` may hold more instances than annotated."""
        ...


class _Image(msgspec.Struct):
    id: int
    height: int
    width: int
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    area: float
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0
    ignore: int = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Category(msgspec.Struct):
    id: int
    name: str
    frequency: str | None = None


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class JsonGroundTruth:
    """Ground truth read from a COCO or LVIS JSON file; the attributes are those of :class:`GroundTruth`.

    Attributes:
        category_frequency: ``r``, ``c`` or ``f`` per category, or empty where the file has none.
    """

    image_ids: Ids
    image_sizes: NDArray[np.int32]
    category_ids: Ids
    category_names: list[str]
    category_frequency: list[str]
    ann_image: NDArray[np.int32]
    ann_category: NDArray[np.int32]
    ann_bbox: NDArray[np.float64]
    ann_area: NDArray[np.float64]
    ann_iscrowd: NDArray[np.bool_]
    ann_ignore: NDArray[np.bool_]
    federated: bool
    images: list[_Image]
    segmentations: list[msgspec.Raw]

    def segmentation(self, a: int) -> Any:
        """Decode the segmentation of annotation ``a``."""
        return msgspec.json.decode(self.segmentations[a])

    @property
    def ann_has_mask(self) -> NDArray[np.bool_]:
        """``(A,)``, whether an annotation has a mask."""
        return np.array([bytes(text) not in (b"null", b"[]", b"{}") for text in self.segmentations], np.bool_)

    def outlines(self, rows: Ids) -> tuple[Ids, NDArray[np.float64]]:
        """Decode the annotations that are one polygon of three points or more."""
        masks = [self.segmentation(row) for row in rows.tolist()]
        single = [isinstance(mask, list) and len(mask) == 1 and len(mask[0]) in range(6, 2**31, 2) for mask in masks]
        polygons = [mask[0] if alone else [] for mask, alone in zip(masks, single, strict=True)]
        places: Ids = np.concatenate([[0], np.cumsum([len(polygon) for polygon in polygons], dtype=np.int64)])
        return places, np.array(list(chain.from_iterable(polygons)), np.float64)

    def negative_categories(self, i: int) -> Ids:
        """Return the verified-absent category ids of image row ``i``."""
        return np.array(self.images[i].neg_category_ids or [], np.int64)

    def not_exhaustive_categories(self, i: int) -> Ids:
        """Return the not exhaustively annotated category ids of image row ``i``."""
        return np.array(self.images[i].not_exhaustive_category_ids or [], np.int64)


def read_ground_truth(path: str | Path) -> JsonGroundTruth:
    """Read a COCO or LVIS annotation file; polygons stay undecoded until they are asked for.

    The set is federated (LVIS) when the images list the categories verified to be absent.

    Raises:
        UserError: The file is not such a JSON, ids repeat, or an annotation names an unknown image or category.
    """
    try:
        file = msgspec.json.decode(Path(path).read_bytes(), type=_File)
    except OSError as error:
        raise UserError("cannot read the annotations", where=path, got=error.strerror) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError("not a COCO or LVIS annotation file", where=path, got=error) from error
    listed = [image.neg_category_ids is not None for image in file.images]
    if any(listed) and not all(listed):
        missing = file.images[listed.index(False)].id
        raise UserError("an image has no neg_category_ids but others have", where=f"{path}: image {missing}")
    image_ids = np.array([image.id for image in file.images], np.int64)
    category_ids = np.array([category.id for category in file.categories], np.int64)
    image_row = _rows([ann.image_id for ann in file.annotations], image_ids, f"{path}: images")
    category_row = _rows([ann.category_id for ann in file.annotations], category_ids, f"{path}: categories")
    order = np.argsort(image_row, kind="stable")
    anns = [file.annotations[index] for index in order.tolist()]
    return JsonGroundTruth(
        image_ids=image_ids,
        image_sizes=np.array([(image.height, image.width) for image in file.images], np.int32).reshape(-1, 2),
        category_ids=category_ids,
        category_names=[category.name for category in file.categories],
        category_frequency=[category.frequency or "" for category in file.categories],
        ann_image=image_row[order].astype(np.int32),
        ann_category=category_row[order].astype(np.int32),
        ann_bbox=np.array([ann.bbox for ann in anns], np.float64).reshape(-1, 4),
        ann_area=np.array([ann.area for ann in anns], np.float64),
        ann_iscrowd=np.array([bool(ann.iscrowd) for ann in anns], bool),
        ann_ignore=np.array([bool(ann.ignore) for ann in anns], bool),
        federated=bool(listed) and all(listed),
        images=file.images,
        segmentations=[ann.segmentation for ann in anns],
    )


def row_of(ids: Ids, known: Ids) -> Ids:
    """Return ``(N,) int64`` places of ``ids`` in the unique, unsorted list ``known``; -1 where an id is unknown."""
    if not len(known):
        return np.full(len(ids), -1, np.int64)
    low, high = int(known.min()), int(known.max())
    if high - low < len(ids) + len(known):  # look every id up in a table; its last place is for those outside
        table = np.full(high - low + 2, -1, np.int64)
        table[known - low] = np.arange(len(known))
        if len(ids) and (ids.min() < low or ids.max() > high):
            return table[np.where((ids >= low) & (ids <= high), ids - low, -1)]
        return table[ids - low]
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    return np.where(known[order[place]] == ids, order[place], -1)


def _rows(ids: Sequence[int], known: Ids, where: str) -> Ids:
    unique, counts = np.unique(known, return_counts=True)
    if (counts > 1).any():
        raise UserError("an id occurs twice", where=where, got=unique[counts > 1][0])
    rows = row_of(np.array(ids, np.int64), known)
    if (rows < 0).any():
        raise UserError("an annotation names an unknown id", where=where, got=ids[int(np.argmax(rows < 0))])
    return rows

"""Columnar annotation store: Arrow files in a folder, memory-mapped and shared by every process that opens them.

A store holds what the annotation JSON of one data set says, in the layout the training and evaluation code reads:

======================  ==============================================================================================
``info.json``           format, checksum of the source file, counts; written last
``images.arrow``        one row per image, in file order
``categories.arrow``    one row per category, in file order
``annotations.arrow``   boxes and ids, sorted by image row, file order inside an image; a single record batch
``segments.arrow``      polygons and RLE of the same annotations, in batches of equal length
======================  ==============================================================================================

Polygon coordinates are stored as ``int32`` hundredths of a pixel where ``int / 100.0`` gives back the very same number,
and as ``float64`` elsewhere, so nothing is lost. Stores are written by :func:`ltpipe.data.store_writer.build_store`.
"""

from __future__ import annotations

import copy
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ltpipe.errors import UserError

STORE_VERSION = 1


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


SCHEMAS = {
    "images": _schema(
        id=pa.int64(),
        size=pa.list_(pa.int32(), 2),
        file=pa.string(),
        annotation_end=pa.int64(),
        negative=pa.list_(pa.int64()),
        not_exhaustive=pa.list_(pa.int64()),
    ),
    "categories": _schema(id=pa.int64(), name=pa.string(), frequency=pa.string()),
    # Flags are bytes, not Arrow's packed bits: those have no numpy view.
    "annotations": _schema(
        id=pa.int64(),
        image=pa.int32(),
        category=pa.int32(),
        bbox=pa.list_(pa.float64(), 4),
        area=pa.float64(),
        iscrowd=pa.uint8(),
        ignore=pa.uint8(),
        order=pa.int64(),
    ),
    "segments": _schema(
        hundredths=pa.list_(pa.list_(pa.int32())), floats=pa.list_(pa.list_(pa.float64())), rle=pa.binary()
    ),
}


class _PolygonColumn(NamedTuple):
    """Flat view of a list-of-lists column: annotation -> polygons -> coordinates."""

    first_polygon: NDArray[np.int32]
    first_value: NDArray[np.int32]
    values: NDArray[Any]

    def row(self, row: int) -> list[NDArray[Any]]:
        """Return the coordinates of each polygon of one annotation."""
        start, stop = self.first_polygon[row : row + 2]
        ends = self.first_value[start : stop + 1].tolist()
        return [self.values[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


class _Segments(NamedTuple):
    """One batch of ``segments.arrow``; at most one of the three columns is non-empty for an annotation."""

    hundredths: _PolygonColumn
    floats: _PolygonColumn
    rle: pa.BinaryArray


class AnnotationStore:
    """Annotations of one data set as zero-copy numpy views of memory-mapped files.

    Open one with :meth:`open`. Pickling keeps the path only, so data loader workers map the same pages again.

    Attributes:
        folder: The absolute folder of the store.
        info: Content of ``info.json``: ``format``, ``sha256`` and ``file`` of the source JSON, ``counts``, and more.
        federated: Whether images carry lists of verified-absent and not-exhaustive categories (LVIS).
        image_ids: ``(I,) int64``, file order.
        image_sizes: ``(I, 2) int32``, ``[height, width]`` in pixels.
        image_ptr: ``(I + 1,) int64``; image row ``i`` owns the annotations ``image_ptr[i]:image_ptr[i + 1]``.
        category_ids: ``(C,) int64``, file order.
        category_names: ``C`` names.
        category_frequency: ``C`` letters: ``r``, ``c`` or ``f``.
        ann_ids: ``(A,) int64``.
        ann_image: ``(A,) int32``, image row, ascending.
        ann_category: ``(A,) int32``, category row.
        ann_bbox: ``(A, 4) float64``, xywh, absolute pixels, as in the file.
        ann_area: ``(A,) float64``, square pixels, as in the file.
        ann_iscrowd: ``(A,) bool``.
        ann_ignore: ``(A,) bool``, the rarely used ``ignore`` key.
        ann_order: ``(A,) int64``, position in the annotation list of the file.
    """

    def __init__(self, folder: Path, info: dict[str, Any], batches: dict[str, pa.RecordBatch]) -> None:
        self.folder = folder
        self.info = info
        self.federated: bool = info["federated"]
        images, categories, annotations = (batches[name] for name in ("images", "categories", "annotations"))
        self.image_ids: NDArray[np.int64] = _array(images["id"])
        self.image_sizes: NDArray[np.int32] = _array(images["size"].values).reshape(-1, 2)
        self.image_ptr: NDArray[np.int64] = np.concatenate([[0], _array(images["annotation_end"])])
        self._files, self._negative, self._not_exhaustive = images["file"], images["negative"], images["not_exhaustive"]
        self.category_ids: NDArray[np.int64] = _array(categories["id"])
        self.category_names: list[str] = categories["name"].to_pylist()
        self.category_frequency: list[str] = categories["frequency"].to_pylist()
        self.ann_ids: NDArray[np.int64] = _array(annotations["id"])
        self.ann_image: NDArray[np.int32] = _array(annotations["image"])
        self.ann_category: NDArray[np.int32] = _array(annotations["category"])
        self.ann_bbox: NDArray[np.float64] = _array(annotations["bbox"].values).reshape(-1, 4)
        self.ann_area: NDArray[np.float64] = _array(annotations["area"])
        self.ann_iscrowd: NDArray[np.bool_] = _array(annotations["iscrowd"]).view(np.bool_)
        self.ann_ignore: NDArray[np.bool_] = _array(annotations["ignore"]).view(np.bool_)
        self.ann_order: NDArray[np.int64] = _array(annotations["order"])
        self._segment_reader = _reader(folder, "segments")
        self._segments: dict[int, _Segments] = {}
        # Of each annotation its row in the files.
        self._rows: NDArray[np.int64] = np.arange(len(self.ann_ids))

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> AnnotationStore:
        """Map the store in ``folder``; takes milliseconds whatever its size.

        Raises:
            UserError: There is no store, it is damaged, or another version of ltpipe wrote it.
        """
        path = Path(folder).resolve()
        again = "build it (again) with `ltpipe index --experiment EXP`"
        try:
            info = json.loads((path / "info.json").read_text(encoding="utf-8"))
            if info["store_version"] != STORE_VERSION:
                raise UserError(
                    "annotation store of another version",
                    where=path,
                    got=info["store_version"],
                    allowed=str(STORE_VERSION),
                    fix=again,
                )
            batches = {name: _reader(path, name).get_batch(0) for name in ("images", "categories", "annotations")}
            return cls(path, info, batches)
        except FileNotFoundError as error:
            raise UserError("no annotation store", where=path, got=f"{error.filename} is missing", fix=again) from error
        except (
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
            OSError,
        ) as error:  # pyarrow's errors are ValueErrors or OSErrors
            raise UserError("damaged annotation store", where=path, got=error, fix=again) from error

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle as the path: the receiving process maps the files itself."""
        return AnnotationStore.open, (str(self.folder),)

    def of_images(self, images: NDArray[np.int64]) -> AnnotationStore:
        """Return a view with the annotations of some images only; all images and categories stay, in their rows.

        Args:
            images: Image rows.
        """
        part = copy.copy(self)
        part.__dict__.pop("ann_has_mask", None)
        rows = np.flatnonzero(np.isin(self.ann_image, images))
        for name in ("ids", "image", "category", "bbox", "area", "iscrowd", "ignore", "order"):
            setattr(part, f"ann_{name}", getattr(self, f"ann_{name}")[rows])
        part._rows = self._rows[rows]
        part.image_ptr = np.concatenate([[0], np.cumsum(np.bincount(part.ann_image, minlength=len(self.image_ids)))])
        return part

    def image_file(self, image: int) -> str:
        """Return the file name of an image row, relative to the image folder of the data set."""
        return cast(str, self._files[image].as_py())

    def negative_categories(self, image: int) -> NDArray[np.int64]:
        """Return ``(n,) int64`` category ids verified to be absent from an image row; empty if not federated."""
        return _array(self._negative[image].values)

    def not_exhaustive_categories(self, image: int) -> NDArray[np.int64]:
        """Return ``(n,) int64`` category ids of which an image row may show unannotated objects."""
        return _array(self._not_exhaustive[image].values)

    def segmentation(self, annotation: int) -> list[list[float]] | dict[str, Any]:
        """Return the mask of an annotation row as the JSON held it; an empty list if it has none.

        Returns:
            Polygons ``[[x0, y0, x1, y1, ...], ...]`` in absolute pixels, or the RLE dictionary.
        """
        if not 0 <= annotation < len(self.ann_ids):
            raise IndexError(f"annotation row {annotation} of {len(self.ann_ids)}")
        batch, row = divmod(int(self._rows[annotation]), self.info["segment_rows"])
        segments = self._segment_batch(batch)
        polygons = [(xy / 100.0).tolist() for xy in segments.hundredths.row(row)]
        polygons = polygons or [xy.tolist() for xy in segments.floats.row(row)]
        rle = segments.rle[row].as_py()
        return polygons or (json.loads(rle) if rle else [])

    @cached_property
    def ann_has_mask(self) -> NDArray[np.bool_]:
        """``(A,) bool``, whether an annotation has a mask."""
        found = [np.zeros(0, np.bool_)]
        for number in range(self._segment_reader.num_record_batches):
            segments = self._segment_batch(number)
            polygons = np.diff(segments.hundredths.first_polygon) + np.diff(segments.floats.first_polygon)
            found.append((polygons > 0) | (_array(pc.binary_length(segments.rle)) > 0))
        return np.concatenate(found)[self._rows]

    def outlines(self, annotations: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the polygons of those of the given annotation rows that are one polygon each.

        Returns:
            ``(n + 1,) int64`` places and the coordinates ``x, y, x, y, ...`` in absolute pixels: row ``i`` of the
            input is ``xy[places[i]:places[i + 1]]``, which is empty for RLE and for several polygons.
        """
        batch, row = np.divmod(self._rows[annotations], self.info["segment_rows"])
        length, parts = np.zeros(len(annotations), np.int64), []
        for number in np.unique(batch).tolist():
            segments = self._segment_batch(number)
            for column, unit in ((segments.hundredths, 100.0), (segments.floats, 1.0)):
                own = np.flatnonzero(batch == number)
                first = column.first_polygon[row[own]]
                single = column.first_polygon[row[own] + 1] - first == 1
                own, first = own[single], first[single]
                starts = column.first_value[first].astype(np.int64)
                length[own] = column.first_value[first + 1] - starts
                parts.append((own, starts, column.values, unit))
        places: NDArray[np.int64] = np.concatenate([[0], np.cumsum(length)])
        xy = np.empty(int(places[-1]))
        for own, starts, values, unit in parts:
            inside = np.arange(int(length[own].sum())) - np.repeat(np.cumsum(length[own]) - length[own], length[own])
            source, target = (np.repeat(begin, length[own]) + inside for begin in (starts, places[own]))
            xy[target] = values[source] / unit
        return places, xy

    def _segment_batch(self, number: int) -> _Segments:
        """Return the views of one batch of masks."""
        if number not in self._segments:
            columns = self._segment_reader.get_batch(number)
            hundredths, floats = (
                _PolygonColumn(*map(_array, (column.offsets, column.values.offsets, column.values.values)))
                for column in (columns["hundredths"], columns["floats"])
            )
            self._segments[number] = _Segments(hundredths, floats, columns["rle"])
        return self._segments[number]


def _array(column: pa.Array) -> NDArray[Any]:
    return cast("NDArray[Any]", column.to_numpy(zero_copy_only=True))


def _reader(folder: Path, name: str) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow")))

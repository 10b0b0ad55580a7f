"""Checks of annotation records that look across records, and their columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.records import AnnotationRecord, ImageRecord, RecordNames
from ltpipe.data.stream import AnnotationStream
from ltpipe.errors import UserError

Columns = dict[str, NDArray[Any]]


class CheckedColumns(NamedTuple):
    """Numbers of an annotation file after all checks.

    Attributes:
        image_ids: ``(I,) int64``, file order.
        image_sizes: ``(I, 2) int32``, height and width in pixels.
        category_ids: ``(C,) int64``, file order.
        annotations: Columns of ``annotations.arrow``, sorted by image row, stable.
    """

    image_ids: NDArray[np.int64]
    image_sizes: NDArray[np.int32]
    category_ids: NDArray[np.int64]
    annotations: Columns


def checked_columns(stream: AnnotationStream, advance: Callable[[int], object]) -> tuple[CheckedColumns, RecordNames]:
    """Check ids, sizes, boxes and federated lists, and lay the records out as columns.

    Args:
        stream: The annotation file.
        advance: Told how many annotations were read, from time to time.

    Returns:
        The columns, and what names the records in messages.

    Raises:
        UserError: Names the file, the record and the key of the first fault found.
    """
    read = _read_columns(stream, advance)
    images, categories = stream.images, stream.categories
    ids = {"annotations": read["id"]}
    ids |= {key: _column(rows, "id") for key, rows in (("images", images), ("categories", categories))}
    name = RecordNames(stream.path, ids)
    for section in ("images", "categories", "annotations"):
        _check_unique(section, ids[section], name)
    image_sizes = np.array([(image.height, image.width) for image in images], np.int64)
    for position in np.flatnonzero((image_sizes <= 0).any(axis=1))[:1]:
        key = "height" if image_sizes[position, 0] <= 0 else "width"
        where = name("images", position, key)
        raise UserError("image without extent", where=where, got=image_sizes[position].min(), allowed="pixels > 0")
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lists = [getattr(image, key) or () for image in images]
        owner = np.repeat(np.arange(len(lists)), [len(listed) for listed in lists])
        listed = np.fromiter(chain.from_iterable(lists), np.int64)
        _rows("categories", ids["categories"], listed, "images", owner, key, name)
    annotations = _annotation_columns(read, ids["images"], ids["categories"], name)
    return CheckedColumns(ids["images"], image_sizes.astype(np.int32), ids["categories"], annotations), name


def existing_files(
    images: Sequence[ImageRecord], image_folder: str | os.PathLike[str] | None, name: RecordNames
) -> list[str]:
    """Return the file of each image relative to ``image_folder``.

    That is ``file_name``, else the last two parts of ``coco_url`` (``train2017/000000000009.jpg``, LVIS v1). Where this
    file does not exist, the other spellings met in practice are tried: LVIS v0.5 carries the COCO 2014 file name beside
    the 2017 URL, and many folders lack the ``train2017`` level.

    Raises:
        UserError: The folder or files in it are missing.
    """
    spellings = [list(_spellings(image)) for image in images]
    if image_folder is None:
        return [names[0] for names in spellings]
    folder = Path(image_folder)
    if not folder.is_dir():
        raise UserError("image folder not found", where=folder, fix="correct the `images` path of the dataset block")
    # One listing per folder: asking for every file would take minutes on network file systems.
    listings: dict[str, set[str]] = {}

    def exists(file: str) -> bool:
        parent, base = os.path.split(file)
        if parent not in listings:
            listings[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        return base in listings[parent]

    found = [next(filter(exists, names), None) for names in spellings]
    missing = [position for position, file in enumerate(found) if file is None]
    if missing:
        first = ", ".join(spellings[position][0] for position in missing[:3])
        raise UserError(
            "image files are missing",
            where=f"{folder}, listed in {name.path}",
            got=f"{len(missing)} of {len(images)} not found: {first}{', ...' if len(missing) > 3 else ''}",
            fix=f"first one: {name('images', missing[0])}",
        )
    return [file for file in found if file is not None]


def _spellings(image: ImageRecord) -> Iterable[str]:
    if image.file_name is not None:
        yield image.file_name
    if image.coco_url is not None:
        parts = image.coco_url.split("/")
        yield "/".join(parts[-2:])
        yield parts[-1]


def _column(rows: Sequence[Any], key: str) -> NDArray[np.int64]:
    return np.fromiter(map(attrgetter(key), rows), np.int64, len(rows))


def _read_columns(stream: AnnotationStream, advance: Callable[[int], object]) -> Columns:
    """Return the numbers of the annotations in file order, as they are."""
    total = len(stream.spans)
    columns: Columns = {key: np.empty(total, np.int64) for key in ("id", "image_id", "category_id")}
    columns |= {"bbox": np.empty((total, 4)), "area": np.empty(total)}
    columns |= {key: np.empty(total, np.uint8) for key in ("iscrowd", "ignore")}
    first = 0
    for rows in stream.annotations():
        place = slice(first, first + len(rows))
        for key, column in columns.items():
            column[place] = _numbers(rows, key).reshape(len(rows), *column.shape[1:])
        first += len(rows)
        advance(len(rows))
    return columns


def _numbers(rows: Sequence[AnnotationRecord], key: str) -> NDArray[Any]:
    values = map(attrgetter(key), rows)
    if key == "bbox":
        return np.fromiter(chain.from_iterable(values), np.float64, 4 * len(rows))
    if key in ("iscrowd", "ignore"):
        return np.fromiter(map(bool, values), np.uint8, len(rows))
    return np.fromiter(values, np.float64 if key == "area" else np.int64, len(rows))


def _annotation_columns(
    read: Columns, image_ids: NDArray[np.int64], category_ids: NDArray[np.int64], name: RecordNames
) -> Columns:
    section = "annotations"
    owner = np.arange(len(read["id"]))
    columns = {key: read[key] for key in ("id", "bbox", "area", "iscrowd", "ignore")}
    for key, kind, ids in (("image", "images", image_ids), ("category", "categories", category_ids)):
        columns[key] = _rows(kind, ids, read[f"{key}_id"], section, owner, f"{key}_id", name)
    for position in np.flatnonzero((columns["bbox"][:, 2:] < 0).any(axis=1))[:1]:
        got, allowed = columns["bbox"][position].tolist(), "[x, y, width, height] with width, height >= 0"
        raise UserError("malformed box", where=name(section, position, "bbox"), got=got, allowed=allowed)
    for position in np.flatnonzero(columns["area"] < 0)[:1]:
        raise UserError("negative area", where=name(section, position, "area"), got=columns["area"][position].item())
    order = np.argsort(columns["image"], kind="stable")
    return {key: values[order] for key, values in columns.items()} | {"order": order}


def _check_unique(section: str, ids: NDArray[np.int64], name: RecordNames) -> None:
    """Refuse ids that occur twice, and images or categories that are none at all."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        raise UserError("duplicate id", where=name(section, second, "id"), got=f"same id as {section}[{first}]")
    if not len(ids) and section != "annotations":
        raise UserError(f"no {section}", where=name.path, got=f'"{section}" is an empty list')


def _rows(
    kind: str,
    known: NDArray[np.int64],
    used: NDArray[np.int64],
    section: str,
    owner: NDArray[np.int64],
    key: str,
    name: RecordNames,
) -> NDArray[np.int32]:
    """Return the row in ``known`` of every used id; ``owner`` is the record of ``section`` that uses it."""
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known[order], used), len(known) - 1)
    for bad in np.flatnonzero(known[order][place] != used)[:1]:
        raise UserError(f"unknown id, not in {kind}", where=name(section, owner[bad], key), got=used[bad])
    return order[place].astype(np.int32)

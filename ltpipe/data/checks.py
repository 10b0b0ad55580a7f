"""Checks of annotation records that look across records, and their columns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.records import AnnotationFile, ImageRecord, RecordNames
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


def checked_columns(records: AnnotationFile, name: RecordNames) -> CheckedColumns:
    """Check ids, sizes, boxes and federated lists, and lay the records out as columns.

    Args:
        records: The annotation file.
        name: Names its records in messages.

    Raises:
        UserError: Names the file, the record and the key of the first fault found.
    """
    image_ids = _unique_ids("images", records.images, name)
    image_sizes = np.array([(image.height, image.width) for image in records.images], np.int64)
    for position in np.flatnonzero((image_sizes <= 0).any(axis=1))[:1]:
        key = "height" if image_sizes[position, 0] <= 0 else "width"
        where = name("images", position, key)
        raise UserError("image without extent", where=where, got=image_sizes[position].min(), allowed="pixels > 0")
    category_ids = _unique_ids("categories", records.categories, name)
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lists = [getattr(image, key) or () for image in records.images]
        owner = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
        _rows("categories", category_ids, np.fromiter(chain.from_iterable(lists), np.int64), "images", owner, key, name)
    annotations = _annotation_columns(records, image_ids, category_ids, name)
    return CheckedColumns(image_ids, image_sizes.astype(np.int32), category_ids, annotations)


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


def _annotation_columns(
    records: AnnotationFile, image_ids: NDArray[np.int64], category_ids: NDArray[np.int64], name: RecordNames
) -> Columns:
    rows, section = records.annotations, "annotations"
    columns: Columns = {"id": _unique_ids(section, rows, name)}
    owner = np.arange(len(rows))
    for key, kind, ids in (("image", "images", image_ids), ("category", "categories", category_ids)):
        used = np.fromiter((getattr(row, f"{key}_id") for row in rows), np.int64, len(rows))
        columns[key] = _rows(kind, ids, used, section, owner, f"{key}_id", name)
    bbox = np.fromiter(chain.from_iterable(row.bbox for row in rows), np.float64, 4 * len(rows))
    columns["bbox"] = bbox.reshape(-1, 4)
    columns["area"] = np.fromiter((row.area for row in rows), np.float64, len(rows))
    for key in ("iscrowd", "ignore"):
        columns[key] = np.fromiter((bool(getattr(row, key)) for row in rows), np.uint8, len(rows))
    for position in np.flatnonzero((columns["bbox"][:, 2:] < 0).any(axis=1))[:1]:
        got, allowed = rows[position].bbox, "[x, y, width, height] with width, height >= 0"
        raise UserError("malformed box", where=name(section, position, "bbox"), got=list(got), allowed=allowed)
    for position in np.flatnonzero(columns["area"] < 0)[:1]:
        raise UserError("negative area", where=name(section, position, "area"), got=rows[position].area)
    order = np.argsort(columns["image"], kind="stable")
    return {key: values[order] for key, values in columns.items()} | {"order": order}


def _unique_ids(section: str, rows: Sequence[Any], name: RecordNames) -> NDArray[np.int64]:
    """Return the ids of a list of records, ``(n,) int64``; refuse a repeated one."""
    ids = np.fromiter((row.id for row in rows), np.int64, len(rows))
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        raise UserError("duplicate id", where=name(section, second, "id"), got=f"same id as {section}[{first}]")
    if not len(ids) and section != "annotations":
        raise UserError(f"no {section}", where=name.path, got=f'"{section}" is an empty list')
    return ids


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

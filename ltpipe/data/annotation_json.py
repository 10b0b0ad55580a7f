"""Annotations for other tools: a whole store as COCO- or LVIS-format file, or chosen classes in a chosen order.

Evaluators take the label of a class from its place in ``categories``, and differ from one another in what they do with
ids of 0, crowds and empty masks. A file for them holds what ltpipe's own evaluation counts, so that they measure
the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.data.categories import Categories
from ltpipe.data.store import AnnotationStore
from ltpipe.run.files import atomic_path

ROWS_PER_BLOCK = 5000


def write_annotations(
    path: Path, store: AnnotationStore, classes: Categories, frequency: Mapping[int, str], *, masked: bool = False
) -> None:
    """Write the annotations of some classes, atomically.

    Under the LVIS protocol crowds, ignored objects and those without area do not count, and are left out. Ids of
    annotations count from 1, because evaluators take 0 for "no match".

    Args:
        path: The JSON file.
        store: All annotations.
        classes: Those to write, in this order.
        frequency: ``r``, ``c`` or ``f`` by category id, of the training annotations.
        masked: Leave out objects without a mask, which evaluators of masks cannot read.
    """
    categories = [{"id": i, "name": name, "frequency": frequency[i]} for i, name in classes.pairs()]
    rows = _counted(store, classes, masked)
    _write(path, store, categories, _annotations(store, rows, np.arange(1, len(rows) + 1)))


def write_dataset(path: Path, store: AnnotationStore) -> None:
    """Write all of a store as COCO-format JSON, or LVIS-format if it is federated, atomically; ids stay.

    Args:
        path: The JSON file.
        store: All annotations, crowds and ignored objects as well.
    """
    classes = Categories.of_store(store, "the annotations")
    categories: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in classes.pairs()]
    if store.info["frequency_from"] == "file":
        for record, letter in zip(categories, store.category_frequency, strict=True):
            record["frequency"] = letter
    found = _annotations(store, np.arange(len(store.ann_ids)), store.ann_ids)
    ignored = store.ann_ignore.tolist()
    _write(path, store, categories, (a | {"ignore": 1} if i else a for a, i in zip(found, ignored, strict=True)))


def _write(
    path: Path, store: AnnotationStore, categories: list[dict[str, Any]], annotations: Iterator[dict[str, Any]]
) -> None:
    encode, ids = msgspec.json.Encoder().encode, {record["id"] for record in categories}
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(b'{"categories": ' + encode(categories) + b',\n"images": [\n')
        images = (_image(store, row, ids) for row in range(len(store.image_ids)))
        handle.writelines(_joined(encode(image) for image in images))
        handle.write(b'],\n"annotations": [\n')
        handle.writelines(_joined(encode(annotation) for annotation in annotations))
        handle.write(b"]}\n")


def _joined(records: Iterator[bytes]) -> Iterator[bytes]:
    for number, record in enumerate(records):
        yield (b",\n" if number else b"") + record


def _image(store: AnnotationStore, row: int, ids: set[int]) -> dict[str, Any]:
    height, width = store.image_sizes[row].tolist()
    record = {"id": int(store.image_ids[row]), "height": height, "width": width, "file_name": store.image_file(row)}
    if store.federated:
        lists = {
            "neg_category_ids": store.negative_categories(row),
            "not_exhaustive_category_ids": store.not_exhaustive_categories(row),
        }
        record |= {key: [i for i in found.tolist() if i in ids] for key, found in lists.items()}
    return record


def _counted(store: AnnotationStore, classes: Categories, masked: bool) -> NDArray[np.int64]:
    """Return the annotation rows of some classes that count in an evaluation, of boxes or of masks."""
    used = np.isin(store.category_ids[store.ann_category], classes.ids)
    if store.federated:
        used &= ~store.ann_iscrowd & ~store.ann_ignore & (store.ann_area > 0)
    return np.flatnonzero(used & store.ann_has_mask if masked else used)


def _annotations(store: AnnotationStore, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = rows[start : start + ROWS_PER_BLOCK]
        columns = {
            "id": ids[start : start + ROWS_PER_BLOCK].tolist(),
            "image_id": store.image_ids[store.ann_image[block]].tolist(),
            "category_id": store.category_ids[store.ann_category[block]].tolist(),
            "bbox": store.ann_bbox[block].tolist(),
            "area": store.ann_area[block].tolist(),
            "iscrowd": store.ann_iscrowd[block].astype(int).tolist(),
            "segmentation": [store.segmentation(row) for row in block.tolist()],
        }
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

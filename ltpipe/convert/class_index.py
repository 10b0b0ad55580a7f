"""Class indices of twangnh/SimCal (``class_to_imageid_and_inscount*.pt``) to plain lists of image ids.

The files are Python pickles, not PyTorch files: a dict of dicts with ``category_id``, ``img_id``, ``image_info_id``
and ``isntance_count``. Keys are 0..K with the background first (LVIS) or labels 1..K (COCO-LT), not category ids; row
numbers refer to a list of images that was sorted and filtered somewhere else, so only the image ids are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltpipe.errors import UserError
from ltpipe.files import write_json
from ltpipe.plain_pickle import read_plain_pickle

_FIELDS = ("category_id", "img_id", "isntance_count")


@dataclass(frozen=True)
class IndexedClass:
    """One class of an index.

    Attributes:
        label: 0..K-1, the rank of the category id.
        image_ids: Images that hold the class, in file order, each once.
        instances: Annotations of the class, crowds included.
    """

    label: int
    image_ids: tuple[int, ...]
    instances: int


def read_class_index(path: Path) -> list[IndexedClass]:
    """Read a class index, with or without background, in label order.

    Raises:
        UserError: The file is no plain pickle, or no class index.
    """
    content = read_plain_pickle(path)
    if not isinstance(content, dict) or not content or not all(_is_record(key, v) for key, v in content.items()):
        allowed = "a dict from 0..K or 1..K to category_id, img_id, image_info_id and isntance_count"
        raise UserError("not a class index", where=path, got=type(content).__name__, allowed=allowed)
    keys = sorted(int(key) for key in content)
    if keys not in (list(range(len(keys))), list(range(1, len(keys) + 1))):
        raise UserError(
            "the classes of the index are not numbered without gaps", where=path, got=f"{keys[:3]} to {keys[-1]}",
            allowed="0..K with the background as 0, or 1..K",
        )  # fmt: skip
    if keys[0] == 0:
        if content[0]["img_id"]:
            raise UserError("class 0 has images, so it is no background", where=path)
        keys = keys[1:]
    return [_indexed(path, key, content[key]) for key in keys]


def by_category(classes: Sequence[IndexedClass], category_ids: Sequence[int], path: Path) -> dict[int, list[int]]:
    """Return the image ids of every category id.

    Args:
        classes: A class index.
        category_ids: Ids of the data set; the k-th smallest is label k - 1.
        path: The file, for the message.

    Raises:
        UserError: The index has another number of classes.
    """
    if len(classes) != len(category_ids):
        raise UserError(
            "the class index belongs to another data set", where=path,
            got=f"{len(classes)} classes", allowed=f"{len(category_ids)}, as in the annotations",
        )  # fmt: skip
    ids = sorted(category_ids)
    return {ids[one.label]: list(one.image_ids) for one in classes}


def write_class_index(path: Path, classes: Sequence[IndexedClass], category_ids: Sequence[int], sha256: str) -> None:
    """Write the index as JSON: checksum of the annotation file, and per class category id, label, counts, image ids."""
    ids = sorted(category_ids)
    records = [
        {
            "category_id": ids[one.label],
            "label": one.label,
            "n_instances": one.instances,
            "n_images": len(one.image_ids),
            "image_ids": list(one.image_ids),
        }
        for one in classes
    ]
    write_json(path, {"annotation_sha256": sha256, "classes": records})


def _is_record(key: Any, value: Any) -> bool:
    return isinstance(key, int) and isinstance(value, Mapping) and all(field in value for field in _FIELDS)


def _indexed(path: Path, key: int, record: Mapping[str, Any]) -> IndexedClass:
    try:
        images = tuple(int(i) for i in record["img_id"])
        own, instances = int(record["category_id"]), int(record["isntance_count"])
    except (TypeError, ValueError) as error:
        raise UserError("class of the index with other than numbers", where=f"{path}: {key}", got=str(error)) from error
    if own != key or len(set(images)) != len(images) or instances < len(images):
        raise UserError(
            "class of the index that contradicts itself", where=f"{path}: {key}",
            got=f"category_id {own}, {len(images)} images ({len(set(images))} different), {instances} instances",
            allowed="category_id equal to the key, every image once, at least one instance per image",
        )  # fmt: skip
    return IndexedClass(key - 1, images, instances)

"""Class lists, and the number of classes without reading a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltpipe.data.readers.coco import read_categories
from ltpipe.errors import UserError
from ltpipe.input_files import read_json_input
from ltpipe.run.checksums import remembered

if TYPE_CHECKING:
    from ltpipe.config.blocks import Dataset


def read_class_list(path: Path) -> list[dict[str, Any]]:
    """Read a class list: ``[{id, name, image_count, instance_count, frequency?}, ...]`` in annotation file order.

    Raises:
        UserError: The file is missing or not such a list.
    """
    classes = read_json_input(path, "the class list")
    needed = ("id", "name", "image_count", "instance_count")
    for number, record in enumerate(classes if isinstance(classes, list) else [classes]):
        lacking = [key for key in needed if not isinstance(record, dict) or key not in record]
        if lacking:
            raise UserError(
                "a record of the class list lacks a field",
                where=f"{path}: record {number}",
                got=f"no {lacking[0]}",
                allowed=needed,
            )
    if not isinstance(classes, list) or not classes:
        raise UserError("the class list is empty", where=path)
    return classes


def annotation_categories(path: Path) -> list[dict[str, Any]]:
    """Return ``id`` and ``name`` of the categories of an annotation file, remembered in a small file until it changes.

    Raises:
        UserError: The file has no list of categories, or one that cannot be used.
    """

    def categories(file: Path) -> list[dict[str, Any]]:
        return [{"id": category.id, "name": category.name} for category in read_categories(file)]

    found = list(remembered(path, "categories", categories))
    if not found:
        raise UserError(
            "the annotation file has no categories", where=path, allowed='a list "categories" of {id, name}'
        )
    return found


def generated_classes(options: dict[str, Any]) -> int:
    """Number of classes that ``ltpipe toy-data`` draws with these options."""
    from ltpipe.config.catalogue import toy_options

    return int(toy_options()(**options).num_classes)  # type: ignore[attr-defined]


def count_classes(dataset: Dataset) -> int:
    """Number of classes of a data set, from the class list, the toy options or the annotation file.

    Raises:
        UserError: None of them is there.
    """
    if dataset.class_list is not None:
        return len(read_class_list(dataset.class_list))
    if dataset.generate is not None:
        return generated_classes(dataset.generate)
    annotations = dataset.train.annotations
    if annotations.is_file():
        return len(annotation_categories(annotations))
    raise UserError(
        "the number of classes is not known yet",
        where="dataset.train.annotations",
        got=f"{annotations} is missing",
        fix="put the annotations there, or name a class list (dataset.class_list), or give split.boundaries",
    )

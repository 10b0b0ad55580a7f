"""Class lists, and the number of classes without reading a data set."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltpipe.errors import UserError
from ltpipe.run.checksums import remembered

if TYPE_CHECKING:
    from ltpipe.config.blocks import Dataset

_CATEGORIES = re.compile(rb'"categories"\s*:\s*\[\s*\{')


def read_class_list(path: Path) -> list[dict[str, Any]]:
    """Read a class list: ``[{id, name, image_count, instance_count, frequency?}, ...]`` in annotation file order.

    Raises:
        UserError: The file is missing or not such a list.
    """
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("the class list is missing", where=path, fix="correct dataset.class_list") from error
    except ValueError as error:
        raise UserError("the class list is not JSON", where=path, got=error) from error
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


def scan_categories(path: Path) -> list[dict[str, Any]]:
    """Read only the ``categories`` of an annotation file: the file is searched in place, not parsed.

    Raises:
        UserError: The file has no list of categories.
    """
    if not path.stat().st_size:
        raise UserError("the annotation file is empty, it has no categories", where=path)
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for match in _CATEGORIES.finditer(text):
            start = match.end() - 1
            while text[start : start + 1] != b"[":
                start -= 1
            end, size = start, 1 << 20
            while end < len(text):
                end = min(len(text), start + size)
                try:
                    found, _ = json.JSONDecoder().raw_decode(text[start:end].decode("utf-8", "ignore"))
                except ValueError:
                    size *= 4
                    continue
                if all(isinstance(c, dict) and "id" in c and "name" in c for c in found):
                    return list(found)
                break
    raise UserError("the annotation file has no categories", where=path, allowed='a list "categories" of {id, name}')


def annotation_categories(path: Path) -> list[dict[str, Any]]:
    """As :func:`scan_categories`, remembering ``id`` and ``name`` in a small file until the annotation file changes."""

    def categories(file: Path) -> list[dict[str, Any]]:
        return [{"id": c["id"], "name": c["name"]} for c in scan_categories(file)]

    return list(remembered(path, "categories", categories))


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

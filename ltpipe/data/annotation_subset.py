"""Parts of an annotation file, whose records are copied byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco import SECTIONS, decode_lists
from ltpipe.data.readers.text import read_text

STALE = ("frequency", "image_count", "instance_count")  # what categories say of the images of the whole file


class Document(NamedTuple):
    """An annotation file with undecoded records.

    Attributes:
        images: Its images.
        annotations: Its annotations.
        categories: Its categories.
        others: Everything else, by key.
    """

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    others: dict[str, msgspec.Raw]


class _Lists(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


def read_document(path: Path) -> Document:
    """Read an annotation file without looking into its records.

    Raises:
        UserError: It is no annotation file.
    """
    content = read_text(path, Findings())
    lists = decode_lists(path, content, _Lists)
    others = decode_lists(path, content, dict[str, msgspec.Raw])
    return Document(
        lists.images, lists.annotations, lists.categories, {k: raw for k, raw in others.items() if k not in SECTIONS}
    )


def write_subset(
    path: Path, document: Document, images: Iterable[Any], annotations: Iterable[Any], note: Mapping[str, Any]
) -> None:
    """Write some records of a file; categories lose the counts and the frequency that no longer hold.

    Args:
        path: The JSON file.
        document: Where they come from.
        images: Images that stay, undecoded or as values.
        annotations: Annotations that stay, likewise.
        note: What ``info`` says in addition.
    """
    info = msgspec.json.decode(document.others.get("info", msgspec.Raw(b"{}")))
    known = info if isinstance(info, dict) else {"description": info}
    content = {
        "info": {**known, **note},
        "licenses": document.others.get("licenses", msgspec.Raw(b"[]")),
        "images": list(images),
        "annotations": list(annotations),
        "categories": [_without_counts(raw) for raw in document.categories],
    }
    path.write_bytes(msgspec.json.encode({**content, **{k: v for k, v in document.others.items() if k not in content}}))


def _without_counts(raw: msgspec.Raw) -> dict[str, Any]:
    return {key: value for key, value in msgspec.json.decode(raw).items() if key not in STALE}

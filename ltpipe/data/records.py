"""Typed reading of COCO- and LVIS-format annotation files, with errors that name the record.

Masks stay undecoded bytes (:class:`msgspec.Raw`): turning the coordinates of a large file into Python numbers all at
once would cost minutes and gigabytes.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError

Format = Literal["coco", "lvis"]
Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Pixels = Annotated[int, msgspec.Meta(le=2**31 - 1)]


class ImageRecord(msgspec.Struct, gc=False):
    """One image; the last two fields exist in LVIS files only."""

    id: Id
    height: Pixels
    width: Pixels
    file_name: str | None = None
    coco_url: str | None = None
    neg_category_ids: list[Id] | None = None
    not_exhaustive_category_ids: list[Id] | None = None


class CategoryRecord(msgspec.Struct, gc=False):
    """One category."""

    id: Id
    name: str
    frequency: Literal["r", "c", "f"] | None = None


class AnnotationRecord(msgspec.Struct, gc=False):
    """One object; ``bbox`` is xywh in absolute pixels, ``segmentation`` the JSON text of polygons or RLE."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float
    segmentation: msgspec.Raw
    iscrowd: int | bool = 0
    ignore: int | bool = 0


class AnnotationFile(msgspec.Struct):
    """The three lists of an annotation file."""

    images: list[ImageRecord]
    categories: list[CategoryRecord]
    annotations: list[AnnotationRecord]


class _ImageList(msgspec.Struct):
    images: list[ImageRecord]


class RecordNames:
    """Names records in messages: ``train.json: annotations[7] (id 12), key "bbox"``.

    Args:
        path: The annotation file.
        ids: Ids of the records in its lists.
    """

    def __init__(self, path: Path, ids: Mapping[str, Sequence[int] | NDArray[np.int64]]) -> None:
        self.path, self.ids = path, ids

    def __call__(self, section: str, position: int, key: str | None = None) -> str:
        """Return the name of a record, ``position`` counted from 0 in file order."""
        return _name(self.path, section, position, self.ids[section][position], key)


def read_image_records(path: Path, fmt: Format) -> tuple[list[ImageRecord], RecordNames]:
    """Read the images of an annotation file, and what names them in messages; its annotations are skipped.

    Raises:
        UserError: As :func:`read_annotation_file`.
    """
    content = map_file(path)
    try:
        images = msgspec.json.decode(content, type=_ImageList).images
    except msgspec.ValidationError as error:
        raise _bad_record(path, content, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad_syntax(path, content, str(error)) from error
    name = RecordNames(path, {"images": [image.id for image in images]})
    check_images(images, fmt, name)
    return images, name


def read_annotation_file(path: str | os.PathLike[str], fmt: Format) -> AnnotationFile:
    """Read and type-check an annotation file.

    The masks refer to a memory map of the file, which stays open as long as they are kept.

    Args:
        path: The JSON file.
        fmt: ``"lvis"`` demands the federated image fields, ``"coco"`` does without.

    Raises:
        UserError: The file is missing, cut off, not JSON, or a record lacks a key or has a value of the wrong type.
    """
    file = Path(path)
    content = map_file(file)
    try:
        records = msgspec.json.decode(content, type=AnnotationFile)
    except msgspec.ValidationError as error:
        raise _bad_record(file, content, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad_syntax(file, content, str(error)) from error
    check_images(records.images, fmt, RecordNames(file, {"images": [image.id for image in records.images]}))
    return records


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory.

    Raises:
        UserError: The file is missing or empty.
    """
    try:
        with path.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # a file without content cannot be mapped
        raise UserError("empty annotation file", where=path) from error
    except OSError as error:
        raise UserError("cannot read the annotation file", where=path, got=error.strerror) from error


def check_images(images: Sequence[ImageRecord], fmt: Format, name: RecordNames) -> None:
    """Demand the keys of a format.

    Raises:
        UserError: An image has no file name, or lacks a list of the LVIS format.
    """
    for position, image in enumerate(images):
        if image.file_name is None and image.coco_url is None:
            raise UserError("image without a file name", where=name("images", position, "file_name"))
        if fmt == "lvis":
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                if getattr(image, key) is None:
                    raise UserError(
                        "missing key of the LVIS format",
                        where=name("images", position, key),
                        fix='set "format: coco" if the file is not federated',
                    )


def _name(file: Path, section: str, position: int, record_id: object, key: str | None) -> str:
    return f"{file}: {section}[{position}] (id {record_id})" + (f', key "{key}"' if key else "")


def _bad_record(file: Path, content: mmap.mmap, message: str) -> UserError:
    """Explain a value of the wrong type; msgspec tells the path inside the document."""
    fault, _, where = message.partition(" - at `$")
    found = re.match(r"\.(images|categories|annotations)\[(\d+)\](?:\.(\w+))?", where)
    if found is None:
        allowed = "an object with the lists images, categories and annotations"
        return UserError("not an annotation file", where=file, got=fault, allowed=allowed)
    section, position = found[1], int(found[2])
    record_id: object = "missing"
    with suppress(msgspec.DecodeError, KeyError):  # the record may be no object at all
        lists = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        record = msgspec.json.decode(lists[section], type=list[msgspec.Raw])[position]
        record_id = msgspec.json.decode(msgspec.json.decode(record, type=dict[str, msgspec.Raw])["id"])
    missing = re.search(r"missing required field `(\w+)`", fault)
    key = missing[1] if missing else found[3]
    return UserError(
        "missing key" if missing else "value of the wrong type",
        where=_name(file, section, position, record_id, key),
        got=None if missing else fault,
    )


def _bad_syntax(file: Path, content: mmap.mmap, message: str) -> UserError:
    """Explain broken JSON by its byte, the text there and, if it can be told, the record."""
    found = re.search(r"byte (\d+)", message)
    if "truncated" in message or found is None:
        return UserError(
            "truncated JSON" if "truncated" in message else "not valid JSON",
            where=f"{file}: byte {len(content)}, the end of the file",
            got=message,
            fix="copy or download the file again",
        )
    byte = int(found[1])
    near = bytes(content[max(0, byte - 40) : byte + 20]).decode("utf-8", "replace")
    if re.match(rb"-?(NaN|Infinity)", content[byte : byte + 9]):
        record_id = _enclosing_id(content, byte)
        return UserError(
            "non-finite number", where=f"{file}: byte {byte}, record with id {record_id}", got=f"... {near} ..."
        )
    return UserError("not valid JSON", where=f"{file}: byte {byte}", got=f"{message}: ... {near} ...")


def _enclosing_id(content: mmap.mmap, byte: int) -> Any:
    """Return the id of the object around a byte, or ``"unknown"``."""
    start, stop = content.rfind(b"{", 0, byte), content.find(b"}", byte)
    with suppress(AttributeError):
        return re.search(rb'"id"\s*:\s*(\d+)', content[start:stop])[1].decode()  # type: ignore[index]
    return "unknown"

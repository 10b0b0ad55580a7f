"""Records of COCO- and LVIS-format files: typed ones, and how values of other types are read as they are meant.

Masks stay undecoded (:class:`msgspec.Raw`): the coordinates of a large file as Python numbers would take gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Pixels = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Box = tuple[float, float, float, float]
NOTHING = msgspec.Raw(b"null")


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
    """One object; ``bbox`` is xywh in absolute pixels, ``segmentation`` the JSON text of its mask."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: Box | None = None
    area: float | None = None
    segmentation: msgspec.Raw = NOTHING
    iscrowd: int | bool | None = None
    ignore: int | bool | None = None


Record = ImageRecord | CategoryRecord | AnnotationRecord
Note = Callable[[str], None]
AS_TEXT, AS_FLOAT, AS_BOOL = "numbers written as text", "whole numbers written with a point", "numbers written as true"
_WHOLE = re.compile(r"\s*[+-]?\d+\s*")


class Unusable(ValueError):
    """A value whose meaning is unclear.

    Attributes:
        kind: What is wrong with the record, in words that suit others of its kind.
    """

    kind = "that cannot be read"


def whole(value: Any, note: Note) -> int:
    """Read a whole number of 64 bits.

    Args:
        value: What stands in the file.
        note: Told what had to be mended.

    Raises:
        Unusable: It is none.
    """
    found: Any = value
    if isinstance(value, str):
        number = _number(value)
        note(AS_TEXT)
        found = int(value) if _WHOLE.fullmatch(value) else number
    if isinstance(found, bool):
        note(AS_BOOL)
    elif isinstance(found, float):
        if not found.is_integer():
            raise Unusable(f"{value!r} is no whole number")
        note(AS_FLOAT)
    elif not isinstance(found, int):
        raise Unusable(f"{_shown(value)} is no whole number")
    if not -(2**63) <= int(found) < 2**63:
        raise Unusable(f"{value} is too large")
    return int(found)


def number(value: Any, note: Note) -> float:
    """Read a number, which may be infinite or none."""
    if isinstance(value, str):
        found = _number(value)
        if found - found == 0:  # NaN and Infinity were put in quotes by the reader
            note(AS_TEXT)
        return found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{_shown(value)} is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise Unusable(f"{value} is too large") from error


def identity(value: Any, note: Note) -> int | str | None:
    """Read an id: a whole number of 64 bits, or a text such as a UUID or a larger number; None if it is missing."""
    if isinstance(value, str):
        text = value.strip()
        if not text or str(_WHOLE.fullmatch(text) and int(text)) != text:
            return text or None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return None if value is None else whole(value, note)


def pixels(value: Any, note: Note) -> int:
    """Read a width or height; -1 if it is missing."""
    found = -1 if value is None else whole(value, note)
    if not -(2**31) <= found < 2**31:
        raise Unusable(f"{value} is too large")
    return found


def name_text(value: Any, note: Note) -> str:
    """Read the name of a class."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unusable(f"{_shown(value)} is no name")
    if not isinstance(value, str):
        note("names written as numbers")
    return str(value)


def file_text(value: Any, note: Note) -> str | None:
    """Read a file name; None if it is missing."""
    return None if value is None or value == "" else name_text(value, note)


def frequency(value: Any, note: Note) -> str | None:
    """Read a frequency group of LVIS; anything else is none."""
    return value if value in ("r", "c", "f") else None


def identities(value: Any, note: Note) -> list[Any] | None:
    """Read a list of ids; None if it is missing."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise Unusable(f"{_shown(value)} is no list of ids")
    if None in value:
        note("null among ids: left out")
    return [identity(item, note) for item in value if item is not None]


def box(value: Any, note: Note) -> Box | None:
    """Read four numbers; None if there are none."""
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise Unusable(f"{_shown(value)} is not [x, y, width, height]")
    if all(item is None for item in value):
        return None
    x, y, width, height = (number(item, note) for item in value)
    return x, y, width, height


def area(value: Any, note: Note) -> float | None:
    """Read an area; None if it is missing."""
    return None if value is None else number(value, note)


def flag(value: Any, note: Note) -> int | None:
    """Read a flag: 0, 1, true, false, also as text; None if it is missing."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false", ""):
        note(AS_TEXT)
        return int(value.strip().lower() == "true")
    return whole(value, note)


FIELDS: dict[str, dict[str, Callable[[Any, Note], Any]]] = {
    "images": {
        "id": identity,
        "height": pixels,
        "width": pixels,
        "file_name": file_text,
        "coco_url": file_text,
        "neg_category_ids": identities,
        "not_exhaustive_category_ids": identities,
    },
    "categories": {"id": identity, "name": name_text, "frequency": frequency},
    "annotations": {
        "id": identity,
        "image_id": identity,
        "category_id": identity,
        "bbox": box,
        "area": area,
        "iscrowd": flag,
        "ignore": flag,
    },
}
REQUIRED = {"images": ("id",), "categories": ("id",), "annotations": ("image_id", "category_id")}
STRICT: dict[str, type[Any]] = {"images": ImageRecord, "categories": CategoryRecord, "annotations": AnnotationRecord}
_DECODERS = {section: msgspec.json.Decoder(kind) for section, kind in STRICT.items()}
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_record(section: str, text: msgspec.Raw, note: Note) -> Any:
    """Read a record whose values may be of other types than they should.

    Args:
        section: ``images``, ``categories`` or ``annotations``.
        text: JSON text of the record.
        note: Told what had to be mended.

    Returns:
        The typed record; ids may still be text or None.

    Raises:
        Unusable: It is no object, or a value's meaning is unclear: says key and value.
    """
    try:
        return _DECODERS[section].decode(text)
    except msgspec.ValidationError:
        pass
    try:
        raw = _OBJECT.decode(text)
    except msgspec.ValidationError as error:
        raise Unusable(f"{bytes(text)[:40].decode('utf-8', 'replace')} is no record") from error
    values: dict[str, Any] = {}
    for key, read in FIELDS[section].items():
        try:
            values[key] = read(_value(raw.get(key, NOTHING)), note)
        except Unusable as error:
            error.kind = f'with an unusable "{key}"'
            raise
        if values[key] is None and key in REQUIRED[section]:
            missing = Unusable(f'"{key}" is missing')
            missing.kind = f'without "{key}"'
            raise missing
    if section == "annotations":
        values["segmentation"] = raw.get("segmentation", NOTHING)
    return STRICT[section](**values)


def _value(text: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:  # a number beyond all bounds
        raise Unusable(f"{bytes(text)[:40].decode('utf-8', 'replace')}: {error}") from error


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise Unusable(f"{value!r} is no number") from error


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

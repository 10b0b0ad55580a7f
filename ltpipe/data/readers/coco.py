"""COCO- and LVIS-format JSON, read once with msgspec: typed where a file is as it should be, else record by record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_records import (
    AnnotationRecord,
    CategoryRecord,
    ImageRecord,
    Unusable,
    read_record,
)
from ltpipe.data.readers.protocol import Ids, Records
from ltpipe.data.readers.text import Text, quoted_words, read_text
from ltpipe.errors import UserError
from ltpipe.input_files import release

SECTIONS = ("images", "categories", "annotations")
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


class _File(msgspec.Struct):
    images: list[ImageRecord]
    categories: list[CategoryRecord]
    annotations: list[AnnotationRecord]


class _Lists(msgspec.Struct):
    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


class _Id(msgspec.Struct):
    id: int | float | str | None = None


class _Categories(msgspec.Struct):
    categories: list[msgspec.Raw]


class _Images(msgspec.Struct):
    images: list[msgspec.Raw]


def read_coco(path: Path, findings: Findings) -> Records:
    """Read a COCO-format file; as :class:`~ltpipe.data.readers.protocol.Reader`."""
    records = _read(path, findings, federated=False)
    lists = [getattr(image, FEDERATED[0]) for image in records.images]
    if lists and None not in lists:
        text = f"images with lists of absent classes ({FEDERATED[0]}), which only `format: lvis` reads"
        findings.remark(text, count=len(lists))
    return records


def read_lvis(path: Path, findings: Findings) -> Records:
    """Read an LVIS-format file, v0.5 or v1; as :class:`~ltpipe.data.readers.protocol.Reader`."""
    records = _read(path, findings, federated=True)
    for row, image in enumerate(records.images):
        for key in FEDERATED:
            if getattr(image, key) is None:
                raise UserError(
                    "missing key of the LVIS format",
                    where=f"{path}: {records.name('images', row, key)}",
                    fix='set "format: coco" if the file is not federated',
                )
    return records


def read_categories(path: Path) -> list[CategoryRecord]:
    """Read the categories only, equal ones once.

    Raises:
        UserError: The file has no list of categories, or one that cannot be used.
    """
    findings = Findings()
    records: list[CategoryRecord] = _section(path, "categories", _Categories, findings)
    findings.check(path, "refuse")
    return list({(record.id, record.name): record for record in records}.values())


def read_images(path: Path) -> list[ImageRecord]:
    """Read the images only, those that can be read.

    Raises:
        UserError: The file has no list of images.
    """
    return _section(path, "images", _Images, Findings())


def _section(path: Path, section: str, kind: type[Any], findings: Findings) -> list[Any]:
    texts = getattr(decode_lists(path, read_text(path, findings), kind), section)
    records, _ = _list(path, section, texts, findings)
    _Numbers(section, records).rename(records)
    return records


def _read(path: Path, findings: Findings, *, federated: bool) -> Records:
    content = read_text(path, findings)
    try:
        file: Any = msgspec.json.decode(content, type=_File)
        lists: dict[str, list[Any]] = {section: getattr(file, section) for section in SECTIONS}
        positions: dict[str, Ids] = {section: np.arange(len(records)) for section, records in lists.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = decode_lists(path, content, _Lists)
        lists, positions = {}, {}
        for section in SECTIONS:
            lists[section], positions[section] = _list(path, section, getattr(raw, section), findings)
    annotations: list[AnnotationRecord] = lists["annotations"]
    numbers = {section: _Numbers(section, records) for section, records in lists.items()}
    if numbers["categories"].texts:
        for image in lists["images"]:
            for key in FEDERATED:
                listed = getattr(image, key)
                setattr(image, key, listed and numbers["categories"].of(listed).tolist())
    for section in ("images", "categories"):
        numbers[section].rename(lists[section])
    boxes, has_box = _boxes(annotations)
    for section, known in numbers.items():
        findings.remark(f"{section} whose ids are no numbers: numbered anew", count=len(known.texts))
    findings.remark("annotations without an id: numbered", count=sum(a.id is None for a in annotations))
    if not federated:  # LVIS has no crowds
        findings.remark("annotations without iscrowd: no crowds", count=sum(a.iscrowd is None for a in annotations))
    return Records(
        path=path,
        federated=federated,
        images=lists["images"],
        categories=lists["categories"],
        positions=positions,
        ids=numbers["annotations"].of([a.id for a in annotations]),
        image_ids=numbers["images"].of([a.image_id for a in annotations]),
        category_ids=numbers["categories"].of([a.category_id for a in annotations]),
        boxes=boxes,
        has_box=has_box,
        areas=np.array([np.nan if a.area is None else a.area for a in annotations], np.float64),
        crowd=np.array([bool(a.iscrowd) for a in annotations], np.uint8),
        ignore=np.array([bool(a.ignore) for a in annotations], np.uint8),
        masks=[a.segmentation for a in annotations],
        renamed={section: known.texts for section, known in numbers.items() if known.texts},
        release=lambda: release(content),
    )


class _Numbers:
    """Numbers for the ids of a list: themselves, or unused ones for those that are text or missing.

    Args:
        section: ``images``, ``categories`` or ``annotations``.
        records: Its records.

    Attributes:
        texts: New numbers by text; also of ids that others use and the list does not have.
    """

    def __init__(self, section: str, records: Sequence[Any]) -> None:
        self.texts: dict[str, int] = {}
        self._own = [record.id for record in records]
        self._free: Iterator[int] | None = None
        texts = dict.fromkeys(value for value in self._own if isinstance(value, str))
        # Classes by their text, so that the files of a data set agree whatever their order.
        for text in sorted(texts) if section == "categories" else texts:
            self.texts[text] = self._unused()

    def _unused(self) -> int:
        if self._free is None:
            used = {value for value in self._own if isinstance(value, int)}
            self._free = (number for number in count(1) if number not in used)
        return next(self._free)

    def number(self, value: int | str | None) -> int:
        """Return the number of an id."""
        if isinstance(value, int):
            return value
        if value is None:
            return self._unused()
        if value not in self.texts:
            self.texts[value] = self._unused()
        return self.texts[value]

    def of(self, values: Sequence[Any]) -> Ids:
        """Return ``(n,) int64`` numbers of ids."""
        whole = set(map(type, values)) <= {int}
        return np.fromiter(values if whole else map(self.number, values), np.int64, len(values))

    def rename(self, records: Sequence[Any]) -> None:
        """Put the numbers into records."""
        for record in records:
            if type(record.id) is not int:
                record.id = self.number(record.id)


def _boxes(annotations: Sequence[AnnotationRecord]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return boxes ``(A, 4)`` and whether there is one ``(A,)``."""
    has_box = np.fromiter((a.bbox is not None for a in annotations), bool, len(annotations))
    flat = chain.from_iterable(a.bbox for a in annotations if a.bbox is not None)
    boxes = np.full((len(annotations), 4), np.nan)
    boxes[has_box] = np.fromiter(flat, np.float64, 4 * int(has_box.sum())).reshape(-1, 4)
    return boxes, has_box


def _list(path: Path, section: str, texts: Sequence[msgspec.Raw], findings: Findings) -> tuple[list[Any], Ids]:
    """Read a list record by record; return those that could be read, and their places in the list.

    Raises:
        UserError: A text is not UTF-8.
    """
    records, places = [], []
    for place, text in enumerate(texts):
        try:
            records.append(read_record(section, text, findings.noting(f"{section}[{place}]")))
            places.append(place)
        except Unusable as error:
            findings.fault(f"{section} {error.kind}", f"{section}[{place}] (id {_id(text)}): {error}")
        except UnicodeDecodeError as error:
            raise _other_encoding(f"{path}: {section}[{place}]", bytes(text)) from error
    return records, np.array(places, np.int64)


def _id(text: msgspec.Raw) -> object:
    """Return the id in a record that cannot be read, for messages."""
    try:
        return msgspec.json.decode(text, type=_Id).id
    except msgspec.DecodeError:
        return "unknown"


def decode_lists(path: Path, content: Text, kind: type[Any]) -> Any:
    """Decode the lists of a file; words that are no JSON, ``NaN`` and ``Infinity``, become text.

    Args:
        path: The file, for messages.
        content: Of :func:`~ltpipe.data.readers.text.read_text`.
        kind: A struct with the lists, or a plain dict.

    Raises:
        UserError: It is no JSON, or has no such lists.
    """
    for attempt in (0, 1):
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError as error:
            fault, _, where = str(error).partition(" - at `$")
            lists = ", ".join(getattr(kind, "__struct_fields__", ()))
            allowed = f"an object with the lists {lists}" if lists else "an object"
            where = f"{path}{where.rstrip('`') and ': ' + where.strip('.`')}"
            raise UserError("not an annotation file", where=where, got=fault, allowed=allowed) from error
        except RecursionError as error:
            raise UserError("not an annotation file", where=path, got="lists in lists without end") from error
        except UnicodeDecodeError as error:
            raise _other_encoding(path, bytes(content[:100_000])) from error
        except msgspec.DecodeError as error:
            if attempt or "malformed" not in str(error):
                raise _bad_syntax(path, content, str(error)) from error
            content = quoted_words(content)
    raise AssertionError


def _other_encoding(where: object, text: bytes) -> UserError:
    """Explain text that is not UTF-8 by what it would be in the most usual other encoding."""
    read = re.search(r"\w*[^\x00-\x7f]+\w*", text.decode("cp1252", "replace"))
    return UserError(
        "the file is not in UTF-8",
        where=where,
        got=f"a text that reads {read[0]!r} in Windows-1252 or Latin-1" if read else "bytes of another encoding",
        allowed="UTF-8, UTF-16 or UTF-32",
        fix="convert it, e.g. with `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`",
    )


def _bad_syntax(path: Path, content: Text, message: str) -> UserError:
    """Explain broken JSON by its byte and the text there."""
    found = re.search(r"byte (\d+)", message)
    if "truncated" in message or found is None:
        return UserError(
            "truncated JSON" if "truncated" in message else "not valid JSON",
            where=f"{path}: byte {len(content)}, the end of the file",
            got=message,
            fix="copy or download the file again",
        )
    byte = int(found[1])
    near = bytes(content[max(0, byte - 40) : byte + 20]).decode("utf-8", "replace")
    return UserError("not valid JSON", where=f"{path}: byte {byte}", got=f"{message}: ... {near} ...")

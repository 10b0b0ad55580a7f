"""An annotation file as a stream: only its images and categories, and the places of its records, are in memory.

The file is mapped. One pass over its bytes finds where every record begins and ends, a second one decodes the records
some at a time. Pages that have been read are given back at once, so that the peak depends on the number of records,
not on the length of their masks.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.compiled import compiled
from ltpipe.data.records import (
    AnnotationFile,
    AnnotationRecord,
    CategoryRecord,
    Format,
    ImageRecord,
    RecordNames,
    check_images,
    map_file,
    read_annotation_file,
)
from ltpipe.errors import UserError

Record = TypeVar("Record", ImageRecord, CategoryRecord, AnnotationRecord)
Spans = NDArray[np.int64]
BLOCK = 1 << 25  # bytes looked at, or decoded, at a time
RECORDS = 1 << 14  # and records
SECTIONS = ("images", "categories", "annotations")


@dataclass(frozen=True)
class AnnotationStream:
    """An annotation file whose annotations are read some at a time.

    Attributes:
        path: The file.
        fmt: ``"lvis"`` or ``"coco"``.
        content: The mapped file.
        images: Its images.
        categories: Its categories.
        spans: ``(A, 2)`` first byte of each annotation, and the one after its last.
    """

    path: Path
    fmt: Format
    content: mmap.mmap
    images: list[ImageRecord]
    categories: list[CategoryRecord]
    spans: Spans

    @classmethod
    def open(cls, path: Path, fmt: Format) -> AnnotationStream:
        """Find the records, and read images and categories.

        Raises:
            UserError: As :func:`~ltpipe.data.records.read_annotation_file`.
        """
        content = map_file(path)
        spans = _find_records(content)
        if spans is None or not _has_only_records(content, spans):
            raise _explanation(path, fmt)
        images = list(chain.from_iterable(_decode(path, fmt, content, spans["images"], ImageRecord)))
        categories = list(chain.from_iterable(_decode(path, fmt, content, spans["categories"], CategoryRecord)))
        check_images(images, fmt, RecordNames(path, {"images": [image.id for image in images]}))
        return cls(path, fmt, content, images, categories, spans["annotations"])

    def annotations(self) -> Iterator[list[AnnotationRecord]]:
        """Decode and check the annotations in file order.

        Raises:
            UserError: A record lacks a key or has a value of the wrong type, or what is between records is not JSON.
        """
        return _decode(self.path, self.fmt, self.content, self.spans, AnnotationRecord)

    def text(self) -> NDArray[np.uint8]:
        """Return the bytes of the file without a copy."""
        return np.frombuffer(self.content, np.uint8)

    def release(self) -> None:
        """Give the pages back that have been read."""
        _release(self.content)


def _release(content: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)


def _find_records(content: mmap.mmap) -> dict[str, Spans] | None:
    """Return the places of the records of each list; None if a list is missing or occurs twice."""
    text = np.frombuffer(content, np.uint8)
    state = np.zeros(STATE, np.int64)
    lists, parts = np.zeros((64, 3), np.int64), []
    while state[POSITION] < len(text):
        found = np.zeros((RECORDS, 2), np.int64)
        parts.append(found[: scan(text, min(len(text), int(state[POSITION]) + BLOCK), state, lists, found)])
        _release(content)
    spans = np.concatenate(parts)
    known = lists[: min(int(state[LISTS]), len(lists))]
    names = [bytes(content[start:stop]).decode("utf-8", "replace") for start, stop, _ in known.tolist()]
    if any(names.count(name) != 1 for name in SECTIONS):
        return None
    bounds = [*known[:, 2].tolist(), len(spans)]
    return {name: spans[bounds[place] : bounds[place + 1]] for place, name in enumerate(names)}


def _has_only_records(content: mmap.mmap, spans: dict[str, Spans]) -> bool:
    """Tell whether the file without the records is three empty lists, and whatever else there may be."""
    cuts = sorted((int(spans[name][0, 0]), int(spans[name][-1, 1])) for name in SECTIONS if len(spans[name]))
    edges = [0, *(edge for cut in cuts for edge in cut), len(content)]
    rest = b"".join(content[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True))
    try:
        msgspec.json.decode(rest, type=AnnotationFile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _decode(path: Path, fmt: Format, content: mmap.mmap, spans: Spans, kind: type[Record]) -> Iterator[list[Record]]:
    """Decode the records at some places, a block at a time."""
    decoder: msgspec.json.Decoder[list[Record]] = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    first, end = 0, 0
    while first < len(spans):
        last = min(first + RECORDS, max(first + 1, int(np.searchsorted(spans[:, 1], spans[first, 0] + BLOCK))))
        start, stop = int(spans[first, 0]), int(spans[last - 1, 1])
        between = content[end:start].strip() if first else b","
        try:
            records = decoder.decode(b"[" + content[start:stop] + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError):
            between = b""
        if between != b",":
            raise _explanation(path, fmt)
        yield records
        _release(content)
        first, end = last, stop


def _explanation(path: Path, fmt: Format) -> UserError:
    """Say what is wrong with a file; only reading it as a whole tells which record it is."""
    try:
        read_annotation_file(path, fmt)
    except UserError as error:
        return error
    return UserError(
        "unusual JSON",
        where=path,
        got="names of keys with escapes, or a list that occurs twice",
        fix="load it and write it again with any JSON library",
    )


POSITION, DEPTH, IN_TEXT, ESCAPED, KEY, KEY_STOP, CONTAINER, RECORD, LISTS, TOTAL, STATE = range(11)
"""What :func:`scan` keeps between calls; the last one is their number."""


@compiled
def scan(text: NDArray[np.uint8], stop: int, state: Spans, lists: Spans, found: Spans) -> int:
    """Go on through a JSON document until ``stop``, or until ``found`` is full; return how many records were found.

    Args:
        text: The document; it need not be valid.
        stop: Where to stop.
        state: What the last call left; zeros in the beginning.
        lists: First and last plus one byte of the name of each list in the outermost object, and how many records come
            before it.
        found: First and last plus one byte of the objects in those lists.
    """
    position, depth, in_text, escaped = state[POSITION], state[DEPTH], state[IN_TEXT], state[ESCAPED]
    key, key_stop, container, record = state[KEY], state[KEY_STOP], state[CONTAINER], state[RECORD]
    count = 0
    while position < stop and count < len(found):
        character = text[position]
        if in_text:
            if escaped:
                escaped = 0
            elif character == ord("\\"):
                escaped = 1
            elif character == ord('"'):
                in_text = 0
                if depth == 1:
                    key_stop = position
        elif character == ord('"'):
            in_text = 1
            if depth == 1:
                key = position + 1
        elif character == ord("[") or character == ord("{"):
            if depth == 1:
                container = character
                if character == ord("["):
                    if state[LISTS] < len(lists):
                        lists[state[LISTS]] = key, key_stop, state[TOTAL] + count
                    state[LISTS] += 1
            elif depth == 2 and character == ord("{") and container == ord("["):
                record = position
            depth += 1
        elif character == ord("]") or character == ord("}"):
            depth -= 1
            if depth == 2 and character == ord("}") and container == ord("["):
                found[count, 0], found[count, 1] = record, position + 1
                count += 1
        position += 1
    state[POSITION], state[DEPTH], state[IN_TEXT], state[ESCAPED] = position, depth, in_text, escaped
    state[KEY], state[KEY_STOP], state[CONTAINER], state[RECORD] = key, key_stop, container, record
    state[TOTAL] += count
    return count

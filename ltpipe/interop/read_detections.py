"""Detections of any framework: results files of COCO and LVIS, as evaluation servers and tools exchange them.

A file is a JSON list of detections, or an object that holds one under ``annotations``, ``predictions``, ``detections``
or ``results``; plain or gzip. A detection has

- ``image_id``, the id of an image, or its file name with or without suffix (or ``file_name`` instead);
- ``category_id``, the id of a category, or its name (or ``category_name`` instead);
- ``score``;
- ``bbox`` ``[x, y, width, height]`` in absolute pixels, ``segmentation`` (polygons, or run lengths as COCO's API packs
  them or as plain numbers), or both.

Other keys are ignored. Memory holds the columns and the records of one block of text at a time.
"""

from __future__ import annotations

import gzip
import mmap
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ltpipe.data.segments import FARTHEST
from ltpipe.errors import UserError
from ltpipe.input_files import map_input
from ltpipe.interop.known_ids import KnownIds
from ltpipe.metrics.predictions import MaskColumn, Predictions, concatenate

LISTS = ("annotations", "predictions", "detections", "results")
ALLOWED = (
    'a JSON list of {"image_id", "category_id", "score", "bbox": [x, y, width, height] and/or "segmentation": polygons '
    "or run lengths}"
)
BLOCK = 1 << 25  # bytes decoded at a time
GZIP = b"\x1f\x8b"
_BETWEEN = re.compile(rb"\}(\s*,\s*)\{")
_NOT_JSON = re.compile(rb"-?(?:NaN|Infinity)\b")
Text = mmap.mmap | memoryview | bytes


class _Mask(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str | list[int]


class _Detection(msgspec.Struct, gc=False):
    score: float
    image_id: int | float | str | None = None
    category_id: int | float | str | None = None
    bbox: tuple[float, float, float, float] | None = None
    segmentation: _Mask | list[list[float] | float] | None = None
    file_name: str | None = None
    category_name: str | None = None


_RECORDS = msgspec.json.Decoder(list[_Detection])


def read_results(path: str | Path, known: KnownIds | None = None) -> Predictions:
    """Read a results file.

    Args:
        path: The file.
        known: Images and categories of the annotations, to look names up and to draw polygons; None: the file has ids
            and run lengths only.

    Returns:
        Checked predictions, in file order, with float64 scores and boxes.

    Raises:
        UserError: Not such a file, a field is missing or of the wrong type, something is not finite or malformed, or an
            image or a category is unknown.
    """
    file = Path(path)
    text = _list_in(file, _content(file))
    blocks = [_columns(rows, first, file, known) for first, rows in _decoded(file, text)]
    kinds = {(block.boxes is None, block.masks is None): block for block in blocks}
    if len(kinds) > 1:
        raise UserError("some detections have boxes or masks that others have not", where=path)
    found = concatenate(blocks)
    if known is not None:
        known.check(found)
    return found.checked()


def _content(path: Path) -> Text:
    try:
        content = map_input(path, "the results file")
        if not content:
            raise UserError("the results file is empty", where=path, allowed=ALLOWED)
        return gzip.decompress(content) if content[:2] == GZIP else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError("damaged gzip file", where=path, got=error, fix="copy or download the file again") from error


def _list_in(path: Path, content: Text) -> Text:
    """Return the text of the list of detections."""
    if bytes(content[:4096]).lstrip()[:1] != b"{":
        return content
    try:
        lists = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(path, content, error) from error
    found = [key for key in LISTS if key in lists and bytes(memoryview(lists[key])[:1]) == b"["]
    if not found:
        got = f"an object with the keys {', '.join(list(lists)[:8])}"
        raise UserError("not a results file", where=path, got=got, allowed=ALLOWED)
    if "images" in lists and b'"score"' not in bytes(memoryview(lists[found[0]])[:4096]):
        fix = "name it as --annotations, and the detections after it"
        raise UserError("these are annotations, not detections: they have no scores", where=path, fix=fix)
    return memoryview(lists[found[0]])


def _decoded(path: Path, text: Text) -> Iterator[tuple[int, list[_Detection]]]:
    """Yield the detections block by block, with the place of the first one in the file."""
    start, stop = _inside(path, text)
    opening, first = start - 1, 0
    while True:
        between = _BETWEEN.search(text, start + BLOCK, stop) if start + BLOCK < stop else None
        try:
            rows = _RECORDS.decode(b"[" + bytes(text[start : between.start(1) if between else stop]) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError):
            # A fault, told with its place in the file, or records that hold lists of objects themselves.
            between, whole = None, text[opening : stop + 1]
            try:
                rows = _RECORDS.decode(whole)[first:]
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _malformed(path, whole, error) from error
        yield first, rows
        if between is None:
            return
        first, start = first + len(rows), between.end(1)


def _inside(path: Path, text: Text) -> tuple[int, int]:
    """Return where the text inside of the list's brackets begins and ends."""
    start, stop = 0, len(text)
    while start < stop and text[start : start + 1] in b" \t\r\n\xef\xbb\xbf":
        start += 1
    while stop > start and text[stop - 1 : stop] in b" \t\r\n":
        stop -= 1
    if text[start : start + 1] != b"[":
        raise UserError("not a results file", where=path, got=f"it begins with {_near(text, start)}", allowed=ALLOWED)
    if text[stop - 1 : stop] != b"]":
        fix = "copy or write the file again"
        raise UserError("the results file is cut off", where=path, got=f"its end: {_near(text, stop)}", fix=fix)
    return start + 1, stop - 1


def _malformed(path: Path, text: Text, error: Exception) -> UserError:
    """Explain text that is no JSON, or a detection without a field or with one of the wrong type."""
    byte = re.search(r"byte (\d+)", str(error))
    bad = byte and _NOT_JSON.match(text, int(byte[1]))
    if byte and bad:
        got = f"{bad[0].decode()} at byte {byte[1]}: {_near(text, int(byte[1]))}"
        return UserError("a number is not finite", where=path, got=got, fix="the model diverged: evaluate again")
    got = f"{error}" + (f": {_near(text, int(byte[1]))}" if byte else "")
    return UserError("not a valid results file", where=path, got=got, allowed=ALLOWED)


def _near(text: Text, byte: int) -> str:
    return repr(bytes(text[max(0, byte - 30) : byte + 20]).decode("utf-8", "replace"))


def _columns(rows: list[_Detection], first: int, path: Path, known: KnownIds | None) -> Predictions:
    """Turn records into columns; ``first`` is the place of the first one in the file."""
    for name in ("bbox", "segmentation"):
        missing = [index for index, row in enumerate(rows) if getattr(row, name) is None]
        if 0 < len(missing) < len(rows):
            where = f"{path}: detection {first + missing[0]}"
            raise UserError(f"a detection has no {name} but others have", where=where, got=f"{len(missing)} detections")
    images = _ids(rows, "image_id", "file_name", path, known.image if known else None)
    categories = _ids(rows, "category_id", "category_name", path, known.category if known else None)
    boxes = masks = None
    if not rows or rows[0].bbox is not None:
        flat = (value for row in rows for value in row.bbox or ())
        boxes = np.fromiter(flat, np.float64, 4 * len(rows)).reshape(-1, 4)
    if rows and rows[0].segmentation is not None:
        masks = _masks(rows, images, first, path, known)
    scores = np.fromiter(map(attrgetter("score"), rows), np.float64, len(rows))
    return Predictions(images, categories, scores, boxes, masks, str(path))


def _ids(
    rows: Sequence[_Detection], key: str, other: str, path: Path, lookup: Callable[[Any], int] | None
) -> NDArray[np.int64]:
    """Return the ids of the images or categories of detections."""
    values = list(map(attrgetter(key), rows))
    if set(map(type, values)) <= {int}:
        return np.array(values, np.int64)
    values = [getattr(row, other) if value is None else value for row, value in zip(rows, values, strict=True)]
    if None in values:
        got = f"{values.count(None)} detections"
        raise UserError(f"a detection has no {key}", where=path, got=got, allowed=ALLOWED)
    whole = {value: int(value) for value in set(values) if not isinstance(value, str) and value == int(value)}
    asked = set(values) - whole.keys()
    if asked and lookup is None:
        raise UserError(f"a name as {key}", where=path, got=sorted(map(str, asked))[:3], allowed="whole numbers")
    ids = whole | {value: lookup(value) for value in asked if lookup is not None}
    return np.fromiter(map(ids.__getitem__, values), np.int64, len(values))


def _masks(
    rows: Sequence[_Detection], images: NDArray[np.int64], first: int, path: Path, known: KnownIds | None
) -> MaskColumn:
    texts: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    for index, row in enumerate(rows):
        mask = row.segmentation
        if isinstance(mask, _Mask) and isinstance(mask.counts, str):
            texts.append(mask.counts.encode("utf-8"))
            sizes.append(mask.size)
            continue
        where = f"{path}: detection {first + index}"
        if isinstance(mask, _Mask):
            coded, size = _packed(mask.counts, mask.size, where), mask.size
        elif known is None:
            raise UserError("polygons need the size of their image", where=where)
        else:
            size = known.size(int(images[index]))
            coded = coco_mask.merge(coco_mask.frPyObjects(_polygons(mask or [], where), *size))["counts"]
        texts.append(coded)
        sizes.append(size)
    values = np.array(sizes, np.int64).reshape(-1, 2)
    bad = np.flatnonzero(((values < 1) | (values > np.iinfo(np.int32).max)).any(axis=1))
    if len(bad):
        raise UserError("an impossible mask size", where=f"{path}: detection {first + bad[0]}", got=sizes[bad[0]])
    return MaskColumn.from_list(texts, values.astype(np.int32))


def _packed(runs: str | list[int], size: tuple[int, int], where: str) -> bytes:
    """Return plain run lengths as COCO's API packs them."""
    assert not isinstance(runs, str)
    height, width = size
    if min(size) < 1 or min(runs, default=0) < 0 or sum(runs) != height * width:
        got = f"runs that sum to {sum(runs)}, size {size}"
        raise UserError("a mask does not cover the image", where=where, got=got)
    packed: bytes = coco_mask.frPyObjects({"size": list(size), "counts": runs}, height, width)["counts"]
    return packed


def _polygons(mask: list[list[float] | float], where: str) -> list[list[float]]:
    """Return the polygons of a mask; a list of plain numbers is one of them."""
    flat = [value for value in mask if not isinstance(value, list)]
    polygons = [value for value in mask if isinstance(value, list)] if not flat else [flat]
    for polygon in polygons:
        if (flat and len(flat) < len(mask)) or len(polygon) < 6 or len(polygon) % 2:
            got = f"{len(polygon)} numbers"
            raise UserError("a polygon without three corners", where=where, got=got, allowed="[x, y, x, y, x, y, ...]")
        if max(map(abs, polygon)) > FARTHEST:
            raise UserError("a polygon beyond all images", where=where, got=f"{max(map(abs, polygon)):g} pixels away")
    return polygons

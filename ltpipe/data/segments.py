"""Masks of annotations: from JSON text to checked columns of the store."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ltpipe.data.polygon_text import read_masks
from ltpipe.data.rle import check_rle
from ltpipe.data.store import SCHEMAS

_Mask = list[list[float]] | dict[str, Any]
_INT32 = np.iinfo(np.int32)


class BadSegment(ValueError):
    """A mask that cannot be used.

    Attributes:
        row: Its row in the batch.
    """

    def __init__(self, row: int, fault: str) -> None:
        super().__init__(fault)
        self.row = row


class _Masked(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw


def encode_segments(text: NDArray[np.uint8], spans: NDArray[np.int64], sizes: NDArray[np.int32]) -> pa.RecordBatch:
    """Check the masks of ``n`` annotations and lay them out as one batch of ``segments.arrow``.

    Args:
        text: ``uint8``, the annotation file.
        spans: ``(n, 2) int64``, first byte of each annotation, and the one after its last. Masks are polygons in
            absolute pixels, or RLE.
        sizes: ``(n, 2) int32``, ``[height, width]`` of each annotation's image.

    Raises:
        BadSegment: A mask of another type; no polygon, or one with fewer than three points or an odd number of
            coordinates; an RLE that does not fit its image.
    """
    room = int((spans[:, 1] - spans[:, 0]).sum()) // 2 + 1
    count = np.zeros(len(spans), np.int64)
    length, values = np.empty(room, np.int32), np.empty(room, np.int32)
    polygons, coordinates = read_masks(text, spans, count, length, values)
    others = np.flatnonzero(count == 0)
    if any(not bytes(mask).startswith(b"{") for mask in _texts(text, spans[others])):
        return _encode_texts(_texts(text, spans), sizes)
    found = _encode_texts(_texts(text, spans[others]), sizes[others], others)
    rle = [b""] * len(spans)
    for row, value in zip(others.tolist(), found["rle"].to_pylist(), strict=True):
        rle[row] = value
    hundredths = _lists(count, _lists(length[:polygons].astype(np.int64), pa.array(values[:coordinates])))
    floats = _lists(np.zeros_like(count), _lists(np.zeros(0, np.int64), pa.array(np.zeros(0))))
    return pa.RecordBatch.from_arrays([hundredths, floats, pa.array(rle, pa.binary())], schema=SCHEMAS["segments"])


def _texts(text: NDArray[np.uint8], spans: NDArray[np.int64]) -> list[msgspec.Raw]:
    """Return the JSON text of the masks of some annotations, which were decoded before."""
    view = memoryview(text)  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers
    return [msgspec.json.decode(view[start:stop], type=_Masked).segmentation for start, stop in spans.tolist()]


def _encode_texts(
    texts: Sequence[msgspec.Raw], sizes: NDArray[np.int32], names: NDArray[np.int64] | None = None
) -> pa.RecordBatch:
    """Do the same with the text of any masks; errors call row ``i`` ``names[i]``."""
    try:
        return _encode_any(texts, sizes)
    except BadSegment as error:
        if names is not None:
            error.row = int(names[error.row])
        raise


def _encode_any(texts: Sequence[msgspec.Raw], sizes: NDArray[np.int32]) -> pa.RecordBatch:
    masks = _decode(texts)
    polygons_of = [mask if isinstance(mask, list) else [] for mask in masks]
    count = np.fromiter(map(len, polygons_of), np.int64, len(masks))
    polygons = list(chain.from_iterable(polygons_of))
    length = np.fromiter(map(len, polygons), np.int64, len(polygons))
    values = np.fromiter(chain.from_iterable(polygons), np.float64, int(length.sum()))
    rle = [b""] * len(masks)
    for row in np.flatnonzero(count == 0).tolist():
        mask = masks[row]
        if isinstance(mask, list):
            raise BadSegment(row, "empty list of polygons")
        try:
            check_rle(mask, *sizes[row].tolist())
        except ValueError as error:
            raise BadSegment(row, str(error)) from error
        rle[row] = bytes(texts[row])
    bad = np.flatnonzero((length < 6) | (length % 2 == 1))
    if len(bad):
        row = int(np.searchsorted(np.cumsum(count), bad[0], side="right"))
        raise BadSegment(row, f"polygon of {length[bad[0]]} numbers")
    columns = _polygon_columns(count, length, values)
    return pa.RecordBatch.from_arrays([*columns, pa.array(rle, pa.binary())], schema=SCHEMAS["segments"])


def _decode(texts: Sequence[msgspec.Raw]) -> list[_Mask]:
    try:
        return msgspec.json.decode(b"[" + b",".join(texts) + b"]", type=list[_Mask])
    except msgspec.DecodeError:
        for row, text in enumerate(texts):
            try:
                msgspec.json.decode(text, type=_Mask)
            except msgspec.DecodeError as error:
                raise BadSegment(row, str(error)) from error
        raise


def _polygon_columns(
    count: NDArray[np.int64], length: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[pa.ListArray, pa.ListArray]:
    """Split annotations between the integer and the floating-point column.

    Args:
        count: ``(n,)`` polygons of each annotation.
        length: ``(p,)`` numbers of each polygon, all > 0.
        values: Their coordinates, pixels.
    """
    hundredths = np.rint(values * 100.0)
    exact = (hundredths / 100.0 == values) & (hundredths >= _INT32.min) & (hundredths <= _INT32.max)
    polygon_exact = _all_within(exact, length)
    row_exact = np.ones(len(count), bool)
    row_exact[count > 0] = _all_within(polygon_exact, count[count > 0])
    columns = []
    for rows, numbers, kind in ((row_exact, hundredths, np.int32), (~row_exact, values, np.float64)):
        kept = np.repeat(rows, count)
        inner = _lists(length[kept], pa.array(numbers[np.repeat(kept, length)].astype(kind)))
        columns.append(_lists(np.where(rows, count, 0), inner))
    return columns[0], columns[1]


def _all_within(flags: NDArray[np.bool_], length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether all flags hold in each of the consecutive stretches of the given lengths, all > 0."""
    if not len(length):
        return np.ones(0, bool)
    return np.logical_and.reduceat(flags, np.cumsum(length) - length)


def _lists(length: NDArray[np.int64], items: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items)

"""Masks of annotations: from what a file has to checked polygons and run lengths, and to columns of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_records import Note, Unusable, number, whole
from ltpipe.data.rle import OtherSize, check_rle
from ltpipe.data.store import SCHEMAS

Polygons = list[list[float]]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Name = Callable[[int], str]
WITHOUT = "objects without a mask: only their boxes are trained and measured"
FEW_POINTS = "polygons of fewer than three points beside others: left out"
FLAT, POINTS = "polygons that are no list of lists", "polygons written as points"
UNUSABLE, OTHER_SIZE = "masks that cannot be read", "masks of another size than their image"
# Pixels. No image is so large; polygons are drawn in memory that grows with their coordinates, up to the process's end.
FARTHEST = 1e6
_BATCH = msgspec.json.Decoder(list[Polygons | dict[str, Any] | None])
_MASK = msgspec.json.Decoder(Polygons | dict[str, Any] | None)


class Masks(NamedTuple):
    """Checked masks of ``n`` annotations; one without has neither polygons nor run lengths.

    Attributes:
        polygons: ``(n,)`` polygons of each annotation.
        length: ``(p,)`` numbers of each polygon, 6 or more.
        values: Their coordinates ``x, y, x, y, ...`` in absolute pixels.
        rle: ``n`` JSON texts of run lengths, or ``b""``.
        bounds: ``(n, 4) float64`` least x and y and largest x and y in absolute pixels; NaN without a pixel.
    """

    polygons: Ints
    length: Ints
    values: Floats
    rle: list[bytes]
    bounds: Floats

    @property
    def present(self) -> NDArray[np.bool_]:
        """``(n,)``: which annotations have a mask."""
        return (self.polygons > 0) | np.fromiter(map(bool, self.rle), np.bool_, len(self.rle))

    def areas(self, sizes: NDArray[np.int32]) -> Floats:
        """Return the pixels ``(n,)`` of the masks, as pycocotools counts them; NaN without a mask.

        Args:
            sizes: ``(n, 2)`` height and width of each annotation's image.
        """
        found = np.full(len(self.rle), np.nan)
        ends = np.concatenate([[0], np.cumsum(self.length)]).tolist()
        outlines = [self.values[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]
        last = np.cumsum(self.polygons).tolist()
        for row in np.flatnonzero(self.present).tolist():
            own: Any = outlines[last[row] - int(self.polygons[row]) : last[row]] or msgspec.json.decode(self.rle[row])
            found[row] = float(coco_mask.area(compressed(own, *sizes[row].tolist())))
        return found

    def columns(self) -> pa.RecordBatch:
        """Return a batch of ``segments.arrow``."""
        polygons = _polygon_columns(self.polygons, self.length, self.values)
        return pa.RecordBatch.from_arrays([*polygons, pa.array(self.rle, pa.binary())], schema=SCHEMAS["segments"])


def read_masks(masks: Sequence[Any], sizes: NDArray[np.int32], findings: Findings, name: Name) -> Masks:
    """Read and check the masks of ``n`` annotations.

    Args:
        masks: As in :class:`~ltpipe.data.readers.protocol.Records`.
        sizes: ``(n, 2)`` height and width of each annotation's image.
        findings: Told what was mended, and of masks that cannot be used; their objects are then without.
        name: Names the annotation in a row.
    """
    found = _decoded(masks, findings, name)
    rle, bounds, failed = [b""] * len(found), np.full((len(found), 4), np.nan), set[int]()
    for row in [row for row, mask in enumerate(found) if type(mask) is dict and mask]:
        try:
            rle[row], bounds[row] = _run_lengths(masks[row], found[row], sizes[row].tolist(), findings, name(row))
        except ValueError as error:
            findings.fault(OTHER_SIZE if isinstance(error, OtherSize) else UNUSABLE, f"{name(row)}: {error}")
            failed.add(row)
    polygons: list[Polygons] = [mask if type(mask) is list else [] for mask in found]
    length = np.fromiter(map(len, chain.from_iterable(polygons)), np.int64)
    if ((length < 6) | (length % 2 == 1)).any():
        failed |= _mend(polygons, findings, name)
        length = np.fromiter(map(len, chain.from_iterable(polygons)), np.int64)
    count = np.fromiter(map(len, polygons), np.int64, len(polygons))
    values = np.fromiter(chain.from_iterable(chain.from_iterable(polygons)), np.float64, int(length.sum()))
    if (np.abs(values) > FARTHEST).any():
        failed |= _leave_out_far(polygons, findings, name)
        count = np.fromiter(map(len, polygons), np.int64, len(polygons))
        length = np.fromiter(map(len, chain.from_iterable(polygons)), np.int64)
        values = np.fromiter(chain.from_iterable(chain.from_iterable(polygons)), np.float64, int(length.sum()))
    bounds[count > 0] = _polygon_bounds(count[count > 0], length, values)
    result = Masks(count, length, values, rle, bounds)
    without = [row for row in np.flatnonzero(~result.present).tolist() if row not in failed]
    findings.remark_rows(WITHOUT, np.array(without, np.intp), name)
    return result


def compressed(mask: Any, height: int, width: int) -> Any:
    """Return polygons or run lengths as pycocotools' compressed run lengths."""
    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    return coco_mask.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask


def _decoded(masks: Sequence[Any], findings: Findings, name: Name) -> list[Any]:
    """Return polygons, run lengths or None; masks of which neither can be made are none."""
    if set(map(type, masks)) <= {msgspec.Raw}:
        try:
            return _BATCH.decode(b"[" + b",".join(masks) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError):  # read them one by one
            pass
    found: list[Any] = []
    for row, mask in enumerate(masks):
        try:
            found.append(_meant(mask, findings.noting(name(row))))
        except (Unusable, msgspec.DecodeError, UnicodeDecodeError) as error:
            findings.fault(UNUSABLE, f"{name(row)}: {error}")
            found.append(None)
    return found


def _meant(mask: Any, note: Note) -> Any:
    """Read a mask of another spelling: flat polygons, points as pairs, numbers as text, run lengths in a list.

    Raises:
        Unusable: Its meaning is unclear.
    """
    if isinstance(mask, msgspec.Raw):
        try:
            return _MASK.decode(mask)
        except msgspec.ValidationError:
            mask = msgspec.json.decode(mask)
    if mask is None or isinstance(mask, dict):
        return mask
    if isinstance(mask, str) and not mask.strip():
        return None
    if not isinstance(mask, list):
        raise Unusable(f"{type(mask).__name__} instead of polygons or run lengths")
    if len(mask) == 1 and isinstance(mask[0], dict):
        note("run lengths in a list of one")
        return mask[0]
    if mask and not any(isinstance(item, list | dict | None) for item in mask):
        note(FLAT)
        mask = [mask]
    return [_coordinates(polygon, note) for polygon in mask if polygon is not None]


def _coordinates(polygon: Any, note: Note) -> list[float]:
    """Read a polygon: numbers, or points of two."""
    if not isinstance(polygon, list):
        raise Unusable(f"{type(polygon).__name__} instead of a polygon")
    if polygon and all(isinstance(point, list) and len(point) == 2 for point in polygon):
        note(POINTS)
        polygon = list(chain.from_iterable(polygon))
    values = [number(value, note) for value in polygon]
    if not np.isfinite(values).all():
        raise Unusable("a coordinate is not finite")
    return values


def _mend(polygons: list[Polygons], findings: Findings, name: Name) -> set[int]:
    """Put points together, leave polygons without an area out, in place; return masks that cannot be used."""
    failed = set()
    for row, mask in enumerate(polygons):
        if len(mask) > 2 and all(len(polygon) == 2 for polygon in mask):
            findings.remark(POINTS, name(row))
            polygons[row] = [list(chain.from_iterable(mask))]
            continue
        odd = [len(polygon) for polygon in mask if len(polygon) % 2]
        if odd:
            findings.fault(UNUSABLE, f"{name(row)}: polygon of {odd[0]} numbers")
            failed.add(row)
            polygons[row] = []
            continue
        polygons[row] = [polygon for polygon in mask if len(polygon) >= 6]
        if polygons[row]:
            findings.remark(FEW_POINTS, name(row), len(mask) - len(polygons[row]))
    return failed


def _leave_out_far(polygons: list[Polygons], findings: Findings, name: Name) -> set[int]:
    """Leave out masks that reach beyond all images, in place; return them."""
    failed = set()
    for row, mask in enumerate(polygons):
        far = next((value for value in chain.from_iterable(mask) if abs(value) > FARTHEST), None)
        if far is not None:
            findings.fault(UNUSABLE, f"{name(row)}: {far:g} pixels away")
            failed.add(row)
            polygons[row] = []
    return failed


def _run_lengths(
    source: Any, mask: dict[str, Any], size: list[int], findings: Findings, name: str
) -> tuple[bytes, list[float]]:
    """Return run lengths as JSON text and their bounds.

    Raises:
        OtherSize: They are those of an image of another size.
        ValueError: They cannot be used.
    """
    height, width = size
    note = findings.noting(name)
    counts, given = mask.get("counts"), mask.get("size")
    if not isinstance(counts, str | list) or not isinstance(given, list):
        raise ValueError("RLE without the keys size and counts")
    plain = [whole(value, note) for value in given]
    runs = [whole(value, note) for value in counts] if isinstance(counts, list) else counts
    same = plain == given and runs == counts and isinstance(source, msgspec.Raw) and bytes(source).startswith(b"{")
    read = {"size": plain, "counts": runs}
    text = bytes(source) if same else msgspec.json.encode(read)
    if not check_rle(read, height, width):
        findings.remark("masks without a pixel", name)
        return text, [np.nan] * 4
    x, y, w, h = coco_mask.toBbox(compressed(read, height, width)).tolist()
    return text, [x, y, x + w, y + h]


def _polygon_bounds(count: Ints, length: Ints, values: Floats) -> Floats:
    """Return ``(n, 4)`` bounds of annotations that all have polygons."""
    if not len(count):
        return np.zeros((0, 4))
    xy = values.reshape(-1, 2)
    points, polygons = np.cumsum(length // 2) - length // 2, np.cumsum(count) - count
    parts = [f.reduceat(f.reduceat(xy, points, axis=0), polygons, axis=0) for f in (np.minimum, np.maximum)]
    return np.concatenate(parts, axis=1)


def _polygon_columns(count: Ints, length: Ints, values: Floats) -> tuple[pa.ListArray, pa.ListArray]:
    """Split annotations between the integer and the floating-point column.

    Args:
        count: ``(n,)`` polygons of each annotation.
        length: ``(p,)`` numbers of each polygon, all > 0.
        values: Their coordinates, pixels.
    """
    hundredths = np.rint(values * 100.0)
    exact = hundredths / 100.0 == values  # up to FARTHEST, which fits 32 bits
    polygon_exact = _all_within(exact, length)
    row_exact = np.ones(len(count), bool)
    row_exact[count > 0] = _all_within(polygon_exact, count[count > 0])
    columns = []
    for rows, numbers, kind in ((row_exact, hundredths, np.int32), (~row_exact, values, np.float64)):
        kept = np.repeat(rows, count)
        inner = _lists(length[kept], pa.array(numbers[np.repeat(kept, length)].astype(kind)))
        columns.append(_lists(np.where(rows, count, 0), inner))
    return columns[0], columns[1]


def _all_within(flags: NDArray[np.bool_], length: Ints) -> NDArray[np.bool_]:
    """Return whether all flags hold in each of the consecutive stretches of the given lengths, all > 0."""
    if not len(length):
        return np.ones(0, bool)
    return np.logical_and.reduceat(flags, np.cumsum(length) - length)


def _lists(length: Ints, items: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items)

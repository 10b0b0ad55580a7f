"""Labelme: one JSON file per image with its shapes (github.com/wkentaro/labelme).

Polygons and drawn masks are objects with a mask, circles become polygons, rectangles are objects without one: they say
nothing of the shape. Shapes of one label and one ``group_id`` are one object, as in Labelme's own converters.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ltpipe.data.findings import Findings
from ltpipe.data.images import BAD_IMAGE
from ltpipe.data.readers.coco_records import Box
from ltpipe.data.readers.collected import Collector, ImageIndex, files_below, holds, part_of, plain, unusable
from ltpipe.data.readers.per_image import Annotated, not_annotated, per_image_parts
from ltpipe.data.readers.protocol import Part
from ltpipe.data.segments import FARTHEST, compressed
from ltpipe.input_files import read_bytes

POLYGONS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")


class _File(msgspec.Struct):
    """Keys of a file that are read; the image in it is not decoded."""

    shapes: list[dict[str, Any]]
    imagePath: str = ""  # noqa: N815
    imageWidth: float | None = None  # noqa: N815
    imageHeight: float | None = None  # noqa: N815


def labelme_parts(source: Path, findings: Findings) -> list[Part]:
    """Find the parts; as :class:`~ltpipe.data.readers.protocol.Source`."""
    if not source.is_dir():
        return []
    files: dict[str, list[Path]] = {}
    for file in files_below(source, {".json"}):
        if holds(file, (b'"shapes"', b'"imagePath"')):
            files.setdefault(part_of(file, source), []).append(file)
    if not files:
        return []
    not_annotated(source, files, findings)
    return per_image_parts(source, files, _read, _add, _image)


def _image(index: ImageIndex, known: Annotated) -> Path | None:
    """Return the image that a file names, relative to itself; else that of the same name."""
    written = known.file.parent / known.image.replace("\\", "/")
    if known.image and written.is_file():
        return plain(written)
    return index.nearest(written.name, known.file) or index.nearest(known.file.stem, known.file)


def _read(file: Path) -> Annotated:
    try:
        content = msgspec.json.decode(read_bytes(file, "the annotation file").removeprefix(b"\xef\xbb\xbf"), type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unusable("that are no Labelme JSON", str(error)) from error
    labels = [label for shape in content.shapes if (label := _label(shape))]
    width, height = (int(value or 0) for value in (content.imageWidth, content.imageHeight))
    return Annotated(file, content.imagePath, width, height, _grouped(content.shapes), labels)


def _grouped(shapes: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the shapes of every object."""
    objects: dict[object, list[Mapping[str, Any]]] = {}
    for number, shape in enumerate(shapes):
        group = shape.get("group_id")
        key = (number,) if group is None else (_label(shape), str(group))
        objects.setdefault(key, []).append(shape)
    return list(objects.values())


def _label(shape: Mapping[str, Any]) -> str:
    label = shape.get("label")
    return label.strip() if isinstance(label, str) else ""


def _add(
    collector: Collector,
    known: Annotated,
    item: Sequence[Mapping[str, Any]],
    ids: Mapping[str, int],
    origin: str,
    findings: Findings,
) -> None:
    """Add an object of one or several shapes.

    Raises:
        Unusable: A shape has no label, no area, or points that cannot be read.
    """
    label = _label(item[0])
    if not label:
        raise unusable("without a label", repr(item[0].get("label")))
    parts = [_shape(shape) for shape in item]
    boxes = [part for shape, part in zip(item, parts, strict=True) if shape.get("shape_type") == "rectangle"]
    masks = [part for part in parts if isinstance(part, list | _Drawn)]
    if len(item) > 1:
        findings.remark("objects of several shapes (one label, one group_id)", origin)
    if boxes and masks:
        raise unusable("of a rectangle and other shapes in one group", f"group_id {item[0].get('group_id')}")
    if boxes:
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
        (x, y), (right, bottom) = corners[:, :2].min(axis=0).tolist(), corners[:, 2:].max(axis=0).tolist()
        collector.object(ids[label], (x, y, right - x, bottom - y), None, origin)
    else:
        collector.object(ids[label], None, _merged(masks, collector.size), origin)


class _Drawn(NamedTuple):
    """A drawn mask: column and row of its first pixel, and its pixels ``(h, w) uint8``."""

    left: int
    top: int
    pixels: NDArray[np.uint8]


def _merged(masks: Sequence[Any], size: tuple[int, int]) -> Any:
    """Return polygons, or run lengths if one of the shapes is a drawn mask."""
    if all(isinstance(mask, list) for mask in masks):
        return list(masks)
    runs = []
    for mask in masks:
        if isinstance(mask, list):
            runs.append(compressed([mask], *size))
        else:
            runs.append(coco_mask.encode(_whole(mask, size)))
    merged = coco_mask.merge(runs)
    return {"size": list(size), "counts": merged["counts"].decode()}


def _whole(mask: _Drawn, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a drawn mask as one of the whole image ``(H, W)``; what lies outside is left out."""
    whole = np.zeros(size, np.uint8, order="F")
    height, width = mask.pixels.shape
    rows, columns = (
        (max(mask.top, 0), min(mask.top + height, size[0])),
        (max(mask.left, 0), min(mask.left + width, size[1])),
    )
    if rows[0] < rows[1] and columns[0] < columns[1]:
        whole[slice(*rows), slice(*columns)] = mask.pixels[
            rows[0] - mask.top : rows[1] - mask.top, columns[0] - mask.left : columns[1] - mask.left
        ]
    return whole


def _shape(shape: Mapping[str, Any]) -> Any:
    """Return a box xywh, the numbers of a polygon, or a drawn mask."""
    kind, points = shape.get("shape_type") or "polygon", _points(shape)
    if kind == "rectangle" and len(points) in (2, 4):
        xs, ys = zip(*points, strict=True)
        box: Box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        return box
    if kind == "circle" and len(points) == 2:
        return _circle(*points)
    if kind == "mask" and len(points) == 2:
        (x, y), pixels = points[0], _pixels(shape.get("mask"))
        return _Drawn(round(x), round(y), pixels)
    if kind in POLYGONS:
        return [value for point in points for value in point]
    raise unusable("of a shape without an area", f"{kind} of {len(points)} points")


def _points(shape: Mapping[str, Any]) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in shape.get("points") or ()]
    except (TypeError, ValueError) as error:
        raise unusable("whose points cannot be read", str(shape.get("points"))[:60]) from error
    if not all(abs(value) <= FARTHEST for point in points for value in point):
        raise unusable("whose points are not finite, or beyond a million pixels", str(points)[:60])
    return points


def _circle(centre: tuple[float, float], edge: tuple[float, float]) -> list[float]:
    """Return a circle as polygon that leaves it by less than half a pixel."""
    radius = math.dist(centre, edge)
    count = max(12, math.ceil(math.pi / math.acos(1 - min(1.0, 0.5 / max(radius, 0.5)))))
    turns = [2 * math.pi * step / count for step in range(count)]
    return [
        value for turn in turns for value in (centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn))
    ]


def _pixels(text: Any) -> Any:
    """Return the pixels of a drawn mask, a PNG in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text or "", validate=True))) as image:
            return (np.asarray(image) > 0).astype(np.uint8)
    except (OSError, *BAD_IMAGE) as error:  # bad base64 is a ValueError
        raise unusable("whose mask cannot be read", str(error)) from error

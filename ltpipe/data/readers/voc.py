"""Pascal VOC: one XML file per image.

The development kit (host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf) counts pixels from 1 and means both corners
as part of the box: ``x = xmin - 1`` and ``width = xmax - xmin + 1``. Many tools write corners as edges that count
from 0 instead. A corner at 0 proves it, and the whole data set is then read so: ``x = xmin``, ``width = xmax - xmin``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_records import Unusable
from ltpipe.data.readers.collected import PARTS, Collector, ImageIndex, files_below, part_of, unusable
from ltpipe.data.readers.per_image import Annotated, not_annotated, per_image_parts
from ltpipe.data.readers.protocol import Part
from ltpipe.errors import UserError
from ltpipe.input_files import read_bytes, read_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FROM_ONE = "boxes whose corners are pixels counted from 1, both inside: x = xmin - 1, width = xmax - xmin + 1"
DIFFICULT = "objects marked as difficult: not trained (`ignore`), but measured, as pycocotools does"
FROM_ZERO = "boxes whose corners are edges counted from 0, since some are 0: x = xmin, width = xmax - xmin"


def voc_parts(source: Path, findings: Findings) -> list[Part]:
    """Find the parts; as :class:`~ltpipe.data.readers.protocol.Source`."""
    if not source.is_dir():
        return []
    files = _by_image_sets(source)
    if files:
        listed = {file for own in files.values() for file in own}
        others = [file for own in _by_folders(source).values() for file in own if file not in listed]
        findings.remark("annotation files that no list of ImageSets names: left out", count=len(others))
    else:
        files = _by_folders(source)
    if not files:
        return []
    corners = [box for own in files.values() for file in own for box in _corners(file)]
    zero = any(value <= 0 for box in corners for value in box[:2])
    findings.remark(FROM_ZERO if zero else FROM_ONE, count=len(corners))
    not_annotated(source, files, findings)
    return per_image_parts(source, files, _read, partial(_add, first=0.0 if zero else 1.0), _image)


def _by_folders(source: Path) -> dict[str, list[Path]]:
    """Return the annotation files by the part that their folders name."""
    files: dict[str, list[Path]] = {}
    for file in files_below(source, {".xml"}):
        if b"<annotation" in read_bytes(file, "the annotation file")[:4096]:
            files.setdefault(part_of(file, source), []).append(file)
    return files


def _by_image_sets(source: Path) -> dict[str, list[Path]]:
    """Return the annotation files of ``ImageSets/Main``, whose lists name images without suffix; none without lists.

    Raises:
        UserError: A list names an image without annotation file.
    """
    files: dict[str, list[Path]] = {}
    for folder in sorted(source.rglob("ImageSets/Main")):
        annotations = folder.parents[1] / "Annotations"
        lists = {file.stem: file for file in folder.glob("*.txt") if file.stem in (*PARTS, "trainval")}
        if "trainval" in lists and {PARTS.get(name) for name in lists} & {"train", "val"}:
            del lists["trainval"]
        for name, file in lists.items():
            stems = (line.split()[0] for line in read_text(file, "the list of images").splitlines() if line.strip())
            own = [annotations / f"{stem}.xml" for stem in dict.fromkeys(stems)]
            missing = [path for path in own if not path.is_file()]
            if missing and PARTS.get(name) != "test":  # those of the challenge were never published
                got = f"{len(missing)} of {len(own)} images without annotation file, e.g. {missing[0]}"
                raise UserError("annotation files are missing", where=file, got=got, fix="copy them, or edit the list")
            if len(missing) < len(own):
                files.setdefault(PARTS.get(name, "train"), []).extend(path for path in own if path.is_file())
    return files


def _image(index: ImageIndex, known: Annotated) -> Path | None:
    """Return the image of an annotation file: that of the same name, else the one it names."""
    folders = [known.file.parent, known.file.parent.parent / "JPEGImages", known.file.parent.parent / "images"]
    written = known.image.replace("\\", "/").rpartition("/")[2]
    for name in (f"{known.file.stem}{Path(written).suffix}", known.file.stem, written):
        beside = next((folder / name for folder in folders if name and (folder / name).is_file()), None)
        found = beside or index.nearest(name, known.file)
        if found is not None:
            return found
    return None


def _root(file: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise unusable("that are no XML", str(error)) from error
    if root.tag != "annotation":
        raise unusable("of another kind", f"<{root.tag}> instead of <annotation>")
    return root


def _read(file: Path) -> Annotated:
    root = _root(file)
    width, height = (_size(root.findtext(f"size/{key}")) for key in ("width", "height"))
    objects = root.findall("object")
    labels = [label for item in objects if (label := _text(item, "name"))]
    return Annotated(file, _text(root, "filename"), width, height, objects, labels)


def _size(text: str | None) -> int:
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError) as error:
        raise unusable("whose size is no number", str(text)) from error


def _text(item: ElementTree.Element, key: str) -> str:
    return (item.findtext(key) or "").strip()


def _corners(file: Path) -> Iterator[list[float]]:
    """Yield the corners of the boxes of a file that can be read."""
    try:
        for item in _root(file).findall("object"):
            yield _corner_values(item)
    except Unusable:
        return


def _corner_values(item: ElementTree.Element) -> list[float]:
    box = item.find("bndbox")
    if box is None:
        raise unusable("without a box", "no <bndbox>")
    return [_number(_text(box, key), key) for key in CORNERS]


def _number(text: str, key: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise unusable("whose coordinates are no numbers", f"{key} {text!r}") from error
    if value - value != 0:
        raise unusable("whose coordinates are not finite", f"{key} {text}")
    return value


def _add(
    collector: Collector,
    known: Annotated,
    item: Any,
    ids: Mapping[str, int],
    origin: str,
    findings: Findings,
    *,
    first: float,
) -> None:
    """Add an object.

    Raises:
        Unusable: It has no name, or no box that can be read.
    """
    label = _text(item, "name")
    if not label:
        raise unusable("without a name", "no <name>")
    left, top, right, bottom = _corner_values(item)
    if left > right or top > bottom:
        findings.remark("boxes whose corners are swapped: put in order", origin)
        left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
    box = (left - first, top - first, right - left + first, bottom - top + first)
    difficult = _text(item, "difficult").lower() in ("1", "true", "yes")
    if difficult:
        findings.remark(DIFFICULT, origin)
    outlines = [_outline(polygon, first) for polygon in item.findall("polygon")]
    collector.object(ids[label], box, outlines or None, origin, ignore=difficult)


def _outline(polygon: ElementTree.Element, first: float) -> list[float]:
    """Return the points of a polygon: ``<x1>``, ``<y1>``, ``<x2>``, ... or ``<pt>`` with ``<x>`` and ``<y>``."""
    points = [point for tag in ("pt", "point") for point in polygon.findall(tag)]
    if points:
        return [_number(_text(point, key), key) - first for point in points for key in "xy"]
    xy = [child for child in polygon if child.tag[:1] in ("x", "y") and child.tag[1:].isdigit()]
    xy.sort(key=lambda child: (int(child.tag[1:]), child.tag[0]))
    return [_number((child.text or "").strip(), child.tag) - first for child in xy]

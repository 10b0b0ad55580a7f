"""YOLO: one text file per image, a line per object, and ``data.yaml`` for the classes and the parts.

A line of five numbers is a class and a box (centre, width and height), one of more a class and the points of a polygon,
all as fractions of the image, which is seen turned by its orientation. Sources: the data set pages of Ultralytics
(docs.ultralytics.com/datasets/detect, /segment), darknet's ``obj.data`` as CVAT writes it, LabelImg's ``classes.txt``.
The readers of the library ``supervision`` draw every polygon as a mask of the whole image and trace it again, round
coordinates to whole pixels, and stop at the first line they cannot read; here annotations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ltpipe.data.findings import Findings
from ltpipe.data.images import Size
from ltpipe.data.readers.coco_records import Box
from ltpipe.data.readers.collected import (
    Collector,
    common_folder,
    files_below,
    in_order,
    read_sizes,
    unusable,
)
from ltpipe.data.readers.data_yaml import Description, part_images, read_description
from ltpipe.data.readers.protocol import Part, Records
from ltpipe.errors import UserError
from ltpipe.input_files import read_text

NOT_LABELS = {
    "classes.txt",
    "train.txt",
    "val.txt",
    "valid.txt",
    "test.txt",
    "readme.dataset.txt",
    "readme.roboflow.txt",
}
SLACK = 0.01  # by which a fraction may leave the image: labels are rounded, and boxes drawn over the border


def yolo_parts(source: Path, findings: Findings) -> list[Part]:
    """Find the parts; as :class:`~ltpipe.data.readers.protocol.Source`. Class ``k`` gets the category id ``k + 1``."""
    known = read_description(source, findings)
    if known is None:
        return []
    parts = []
    for name in in_order(known.entries):
        found = part_images(known, name, findings)
        if found is None:
            continue
        images, folders = found
        read = partial(_read, known=known, images=images, folders=folders)
        parts.append(Part(name, known.file, read, common_folder(images, known.file.parent)))
    return parts


def _read(path: Path, findings: Findings, *, known: Description, images: list[Path], folders: list[Path]) -> Records:
    """Read a part; as :class:`~ltpipe.data.readers.protocol.Reader`."""
    missing = [image for image in images if not image.is_file()]
    findings.fault_rows("images that are listed and not there", np.arange(len(missing)), lambda row: str(missing[row]))
    classes = {number + 1: name for number, name in known.names.items()}
    collector = Collector(path, common_folder(images, path.parent), classes, findings)
    found = read_sizes([image for image in images if image.is_file()], findings)
    without = []
    for image, (upright, _) in found.items():
        label = next((file for file in _label_files(image) if file.is_file()), None)
        collector.image(image, upright, str(image))
        if label is None:
            without.append(image)
            continue
        for origin, numbers in _lines(label, findings):
            add = partial(_add, collector, numbers, upright, known, origin, findings)
            collector.gather("labels", origin, add)
    text = "images without a label file: images without objects"
    findings.remark_rows(text, np.arange(len(without)), lambda row: str(without[row]))
    known_labels = {file.resolve() for image in images for file in _label_files(image)}
    lone = sorted({file for folder in folders for file in _labels_in(folder) if file.resolve() not in known_labels})
    findings.fault_rows("label files without an image", np.arange(len(lone)), lambda row: str(lone[row]))
    return collector.records()


def _add(
    collector: Collector, numbers: Sequence[str], size: Size, known: Description, origin: str, findings: Findings
) -> None:
    """Add the object of a line.

    Raises:
        Unusable: Its meaning is unclear.
    """
    try:
        values = [float(number) for number in numbers]
    except ValueError as error:
        raise unusable("that are no numbers", " ".join(numbers)) from error
    label, rest = values[0], values[1:]
    if not label.is_integer() or int(label) not in known.names:
        raise unusable("of a class that data.yaml does not have", numbers[0])
    pose = known.keypoints and len(rest) == 4 + known.keypoints
    extra = len(rest) == 5 or (len(rest) > 6 and len(rest) % 2 == 1)
    if pose:
        findings.remark("labels with keypoints: only their boxes are read", origin)
        rest = rest[:4]
    elif extra:
        findings.remark("labels with a number behind their coordinates (a confidence or a track): not read", origin)
        rest = rest[:-1]
    if len(rest) < 4:
        raise unusable("of fewer than five numbers", " ".join(numbers))
    if not all(-SLACK <= value <= 1 + SLACK for value in rest):
        raise unusable("whose coordinates are no fractions of the image", " ".join(numbers[:8]))
    height, width = size
    if len(rest) == 4:
        x, y, w, h = rest[0] * width, rest[1] * height, rest[2] * width, rest[3] * height
        if min(w, h) < 0:
            raise unusable("of negative width or height", " ".join(numbers))
        box: Box = (x - w / 2, y - h / 2, w, h)
        collector.object(int(label) + 1, box, None, origin)
    else:
        polygon = [value * side for value, side in zip(rest, [width, height] * (len(rest) // 2), strict=True)]
        collector.object(int(label) + 1, None, [polygon], origin)


def _lines(label: Path, findings: Findings) -> Iterator[tuple[str, list[str]]]:
    """Yield where each object of a label file stands, and its words; equal lines once."""
    try:
        text = read_text(label, "the label file")
    except UserError as error:
        findings.fault("label files that cannot be read", f"{label}: {error.got or error.what}")
        return
    seen = set[tuple[str, ...]]()
    for number, line in enumerate(text.splitlines(), 1):
        found, origin = line.split(), f"{label}, line {number}"
        if found and tuple(found) in seen:
            findings.remark("labels that are written more than once: read once", origin)
        elif found:
            seen.add(tuple(found))
            yield origin, found


def _label_files(image: Path) -> Iterator[Path]:
    """Yield where the labels of an image may be: in ``labels`` instead of the last ``images``, or beside it."""
    parents = list(image.parts[:-1])
    if "images" in parents:
        parents[len(parents) - 1 - parents[::-1].index("images")] = "labels"
        yield Path(*parents, f"{image.stem}.txt")
    yield image.with_suffix(".txt")


def _labels_in(folder: Path) -> Iterator[Path]:
    """Yield the label files that belong to the images of a folder."""
    for parent in {file.parent for file in _label_files(folder / "image.jpg")}:
        yield from (file for file in files_below(parent, {".txt"}) if file.name.lower() not in NOT_LABELS)

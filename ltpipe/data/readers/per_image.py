"""Formats with one annotation file per image that name its classes and its size: what Pascal VOC and Labelme share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_records import Unusable
from ltpipe.data.readers.collected import (
    Collector,
    ImageIndex,
    annotated_size,
    common_folder,
    in_order,
    numbered,
    read_sizes,
)
from ltpipe.data.readers.protocol import Part, Records


@dataclass(frozen=True)
class Annotated:
    """What an annotation file says.

    Attributes:
        file: The annotation file.
        image: Name of its image.
        width: Pixels; 0 if it does not say.
        height: Likewise.
        objects: Its objects, as the format has them.
        labels: Names of classes, of the objects that have one.
    """

    file: Path
    image: str
    width: int
    height: int
    objects: Sequence[Any]
    labels: Sequence[str]


Read = Callable[[Path], Annotated]
Add = Callable[[Collector, Annotated, Any, Mapping[str, int], str, Findings], None]


def per_image_parts(
    source: Path, files: Mapping[str, Sequence[Path]], read: Read, add: Add, image_of: Callable[..., Path | None]
) -> list[Part]:
    """Return the parts of a data set, with one list of classes, alphabetical, ids from 1.

    Args:
        source: Its folder.
        files: Annotation files by part.
        read: Reads one; raises :class:`~ltpipe.data.readers.coco_records.Unusable` if it cannot.
        add: Adds an object of one to the collector, with the category ids by name; may raise ``Unusable``.
        image_of: Returns the image file of an annotation file, given the index of all; None if it is not there.
    """
    index = ImageIndex(source)
    names, images = set[str](), defaultdict[str, list[Path]](list)
    for part, own in files.items():
        for file in own:
            try:
                known = read(file)
                names |= set(known.labels)
                images[part] += filter(None, [image_of(index, known)])
            except Unusable:
                continue  # told by the reader of the part
    classes = numbered(names)
    folders = {part: common_folder(images[part], source) for part in files}
    kept: dict[str, Any] = {"read": read, "add": add, "image_of": image_of, "index": index, "classes": classes}
    return [
        Part(part, source, partial(_read, files=files[part], folder=folders[part], **kept), folders[part])
        for part in in_order(files)
    ]


def _read(
    path: Path,
    findings: Findings,
    *,
    files: Sequence[Path],
    folder: Path,
    read: Read,
    add: Add,
    image_of: Callable[..., Path | None],
    index: ImageIndex,
    classes: Mapping[int, str],
) -> Records:
    """Read a part; as :class:`~ltpipe.data.readers.protocol.Reader`."""
    found: list[tuple[Annotated, Path]] = []
    taken: dict[Path, Path] = {}
    for file in files:
        try:
            known = read(file)
            image = image_of(index, known)
        except Unusable as error:
            findings.fault(f"annotation files {error.kind}", f"{file}: {error}")
            continue
        if image is None:
            findings.fault("annotation files without an image", f"{file}: {known.image}")
        elif taken.setdefault(image, file) != file:
            findings.fault("images with several annotation files", f"{file}, as {taken[image]}")
        else:
            found.append((known, image))
    sizes = read_sizes([image for _, image in found], findings)
    collector = Collector(path, folder, classes, findings)
    ids = {name: number for number, name in classes.items()}
    for known, image in found:
        if image in sizes:
            _add(collector, known, image, sizes[image], add, ids, findings)
    return collector.records()


def _add(
    collector: Collector,
    known: Annotated,
    image: Path,
    sizes: Any,
    add: Add,
    ids: Mapping[str, int],
    findings: Findings,
) -> None:
    """Add an image and its objects."""

    def itself() -> None:
        collector.image(image, annotated_size(known.width, known.height, sizes), str(known.file))

    if min(known.width, known.height) <= 0:
        findings.remark("annotation files without the size of their image: it is read from the image", str(known.file))
    if collector.gather("annotation files", str(known.file), itself):
        for number, item in enumerate(known.objects):
            origin = f"{known.file}, object {number + 1}"
            collector.gather("objects", origin, partial(add, collector, known, item, ids, origin, findings))


def not_annotated(source: Path, files: Mapping[str, Sequence[Path]], findings: Findings) -> None:
    """Remark on images beside which others are annotated, but they are not: they are left out."""
    stems = {file.stem for own in files.values() for file in own}
    lone = [file for file in ImageIndex(source).files if file.stem not in stems]
    text = "images without an annotation file: not annotated, left out"
    findings.remark_rows(text, np.arange(len(lone)), lambda row: str(lone[row]))

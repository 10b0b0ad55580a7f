"""Folders of COCO- or LVIS-format files, as Roboflow (``train/_annotations.coco.json``), CVAT and COCO lay them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ltpipe.data.findings import Findings
from ltpipe.data.formats import annotation_format
from ltpipe.data.readers import READERS
from ltpipe.data.readers.coco import read_images
from ltpipe.data.readers.collected import ONLY_PART, PARTS, files_below, holds, in_order, part_of, words
from ltpipe.data.readers.protocol import Part
from ltpipe.errors import UserError

LISTS = (b'"images"', b'"annotations"', b'"categories"')
OTHER = ("keypoints", "panoptic", "captions", "stuff")  # what COCO publishes beside its instances


def coco_parts(source: Path, findings: Findings) -> list[Part]:
    """Find the parts; as :class:`~ltpipe.data.readers.protocol.Source`. The source may also be one annotation file."""
    if source.is_file():
        suffixes = source.suffixes[-2:]
        return [_part(ONLY_PART, source, source.parent)] if {".json", ".gz"} & set(suffixes) else []
    found: dict[str, list[Path]] = {}
    for file in files_below(source, {".json", ".json.gz"}):
        if _annotates(file):
            found.setdefault(_name(file, source), []).append(file)
    return [_part(name, _one(found[name], source, findings), source) for name in in_order(found)]


def _annotates(file: Path) -> bool:
    """Whether a file seems to have the three lists; a packed one is taken to have them."""
    return file.suffix == ".gz" or holds(file, LISTS)


def _name(file: Path, source: Path) -> str:
    """Return the part that a file is of: by its folders, else by its own name."""
    folder = part_of(file, source)
    named = [PARTS[word] for word in words(file.name) if word in PARTS]
    return named[-1] if folder == ONLY_PART and named else folder


def _one(files: list[Path], source: Path, findings: Findings) -> Path:
    """Return the annotations of a part.

    Raises:
        UserError: Several files could be meant.
    """
    objects = [file for file in files if not set(OTHER) & set(words(file.name))] or files
    if len(objects) > 1:
        raise UserError(
            "several annotation files for one part",
            where=source,
            got=", ".join(str(file.relative_to(source)) for file in objects[:5]),
            fix=f"name one: `ltpipe import {objects[0]} ...`, or move the others away",
        )
    for file in files:
        if file != objects[0]:
            findings.remark("annotation files of another kind: not read", str(file))
    return objects[0]


def _part(name: str, file: Path, source: Path) -> Part:
    return Part(name, file, READERS[annotation_format(file)], _images(file, source))


def _images(file: Path, source: Path) -> Path:
    """Return the folder of the images: the first in which that of the first record lies, else the whole source."""
    images = read_images(file)
    written = (images[0].file_name or images[0].coco_url or "" if images else "").replace("\\", "/")
    names = [written, written.rpartition("/")[2]]
    return next(
        (folder for folder in _folders(file, source) if any((folder / n).is_file() for n in names if n)), source
    )


def _folders(file: Path, source: Path) -> Iterator[Path]:
    """Yield where images may be: beside the file, and in folders that its name or the source's layout suggest."""
    stem = file.name.split(".")[0].rpartition("_")[2]
    yield from (file.parent, file.parent / "images")
    for root in (source, file.parent.parent):
        yield from (root / "images" / stem, root / stem, root / "images", root)

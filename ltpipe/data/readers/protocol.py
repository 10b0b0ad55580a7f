"""What a reader of annotation files returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.findings import Findings
from ltpipe.data.readers.coco_records import CategoryRecord, ImageRecord

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """The records of an annotation file that could be read, each by itself; links between them are not checked yet.

    Attributes:
        path: The file.
        federated: Whether images list verified-absent and not exhaustively annotated categories, as in LVIS.
        images: ``I`` images.
        categories: ``C`` categories.
        positions: By ``images``, ``categories``, ``annotations``: the place of every record in its list of the file.
        ids: ``(A,) int64`` annotation ids; numbered anew where the file has none.
        image_ids: ``(A,) int64``.
        category_ids: ``(A,) int64``.
        boxes: ``(A, 4) float64`` xywh in absolute pixels.
        has_box: ``(A,) bool``, whether the file has a box.
        areas: ``(A,) float64`` square pixels; NaN where the file has none.
        crowd: ``(A,) uint8``.
        ignore: ``(A,) uint8``.
        masks: ``A`` masks: JSON text (:class:`msgspec.Raw`) or its value. Polygons in absolute pixels, run lengths, or
            anything that stands for no mask.
        renamed: Numbers that stand for ids which are no numbers, by section and id.
        origins: Where the records come from, by section, if that is no place in a list of one file.
        release: Gives memory back after some masks have been read.
    """

    path: Path
    federated: bool
    images: Sequence[ImageRecord]
    categories: Sequence[CategoryRecord]
    positions: Mapping[str, Ids]
    ids: Ids
    image_ids: Ids
    category_ids: Ids
    boxes: NDArray[np.float64]
    has_box: NDArray[np.bool_]
    areas: NDArray[np.float64]
    crowd: NDArray[np.uint8]
    ignore: NDArray[np.uint8]
    masks: Sequence[Any]
    renamed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None

    def shown(self, section: str, number: int) -> int | str:
        """Return an id as the file has it."""
        texts = {value: text for text, value in self.renamed.get(section, {}).items()}
        return texts.get(int(number), int(number))

    def name(self, section: str, row: int, key: str | None = None) -> str:
        """Name a record in messages: ``annotations[7] (id 12), key "bbox"``, counted from 0 in file order."""
        if section in self.origins:
            return self.origins[section][row]
        number = self.ids[row] if section == "annotations" else getattr(self, section)[row].id
        return f"{section}[{self.positions[section][row]}] (id {self.shown(section, number)})" + (
            f', key "{key}"' if key else ""
        )


class Reader(Protocol):
    """Reads one annotation format, or one part of a data set."""

    def __call__(self, path: Path, findings: Findings) -> Records:
        """Read a file.

        Args:
            path: The file, or the folder of a data set.
            findings: Told what was mended, and of records that cannot be used and are left out.

        Raises:
            UserError: The file cannot be read at all.
        """
        ...


@dataclass(frozen=True)
class Part:
    """A part of a data set in a folder.

    Attributes:
        name: ``train``, ``val``, ``test``, another name of the data set, or ``annotations`` if it has one part.
        path: What its reader is given.
        read: Its reader.
        images: Folder of its images, which file names are relative to.
    """

    name: str
    path: Path
    read: Reader
    images: Path


class Source(Protocol):
    """Finds the parts of a data set of one format."""

    def __call__(self, source: Path, findings: Findings) -> list[Part]:
        """Return the parts; none if the folder holds another format.

        Args:
            source: The folder, or a file that describes the data set.
            findings: Told what was mended, and how the format was read.

        Raises:
            UserError: It is of the format, and cannot be used.
        """
        ...

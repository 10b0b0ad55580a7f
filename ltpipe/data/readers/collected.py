"""Records gathered from formats that have one annotation file per image, in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ltpipe.data.findings import Findings
from ltpipe.data.images import Size, sizes
from ltpipe.data.readers.coco_records import Box, CategoryRecord, ImageRecord, Unusable
from ltpipe.data.readers.protocol import Records
from ltpipe.data.segments import FARTHEST, compressed
from ltpipe.input_files import map_input

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
PARTS = {"train": "train", "training": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
ONLY_PART = "annotations"
DIGITS = 6  # of coordinates: what follows is noise of the arithmetic
Sizes = tuple[Size, Size]


def unusable(kind: str, text: str) -> Unusable:
    """Return the error for a record that cannot be used: of which kind, and which one."""
    error = Unusable(text)
    error.kind = kind
    return error


def part_of(path: Path, source: Path) -> str:
    """Return the part that the folders of a file name, the innermost first; ``annotations`` if none does."""
    for folder in reversed(path.relative_to(source).parts[:-1]):
        if folder.lower() in PARTS:
            return PARTS[folder.lower()]
    return ONLY_PART


def in_order(parts: Iterable[str]) -> list[str]:
    """Return names of parts: training, validation and test first."""
    return sorted(parts, key=lambda name: ((*PARTS.values(), name).index(name), name))


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files below a folder with one of the suffixes, in order; hidden ones are none, links are followed."""
    found, seen, wanted = [], set[str](), tuple(suffixes)
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if name.lower().endswith(wanted) and not name.startswith(".")]
    return sorted(found)


def plain(path: Path) -> Path:
    """Return a path without ``..``, if that leads to the same place."""
    shorter = Path(os.path.normpath(path))
    return shorter if shorter.exists() and os.path.samefile(shorter, path) else path


def holds(file: Path, words: Iterable[bytes]) -> bool:
    """Whether a file holds all of some words."""
    content = map_input(file, "a file of the data set")
    return all(content.find(word) >= 0 for word in words)


def common_folder(images: Sequence[Path], otherwise: Path) -> Path:
    """Return the innermost folder that holds all images."""
    return Path(os.path.commonpath([image.parent for image in images])) if images else otherwise


class ImageIndex:
    """Image files below a folder, by name and by name without suffix; label maps of Pascal VOC are none."""

    def __init__(self, folder: Path) -> None:
        self.files = [file for file in files_below(folder, SUFFIXES) if not file.parent.name.startswith("Segmentation")]
        self._by: dict[str, list[Path]] = {}
        for file in self.files:
            for key in {file.name, file.stem}:
                self._by.setdefault(key, []).append(file)

    def nearest(self, name: str, annotation: Path) -> Path | None:
        """Return the file of a name whose folders are most like those of an annotation file; None if there is none.

        Raises:
            Unusable: Several are as near.
        """
        found, folders = self._by.get(name, []), set(annotation.parent.parts)
        alike = [len(folders & set(file.parent.parts)) for file in found]
        best = [file for file, shared in zip(found, alike, strict=True) if shared == max(alike)]
        if len(best) > 1:
            raise unusable("whose image is unclear", f"{best[0]} or {best[1]}")
        return best[0] if best else None


def read_sizes(images: Sequence[Path], findings: Findings) -> dict[Path, Sizes]:
    """Return the sizes, upright and as stored, of the image files that can be read; the others are faults."""

    def read(image: Path) -> Sizes | OSError:
        try:
            return sizes(image)
        except OSError as error:
            return error

    found = {}
    with ThreadPoolExecutor(8) as pool:
        for image, size in zip(images, pool.map(read, images), strict=True):
            if isinstance(size, OSError):
                findings.fault("image files that cannot be read", f"{image}: {size.strerror or size}")
            else:
                found[image] = size
    return found


def annotated_size(width: int, height: int, found: Sizes) -> Size:
    """Return height and width of an image as it was annotated; upright if the annotation does not say.

    Raises:
        Unusable: The image has another size.
    """
    if min(height, width) <= 0:
        return found[0]
    if (height, width) not in found:
        text = f"height {height}, width {width}; its image has height {found[0][0]}, width {found[0][1]}"
        raise unusable("of images of another size", text)
    return height, width


class Collector:
    """Gathers images and objects.

    Args:
        path: What is read, for messages.
        images: Folder of the images.
        classes: Names by category id.
        findings: Told of faults.
    """

    def __init__(self, path: Path, images: Path, classes: Mapping[int, str], findings: Findings) -> None:
        self._path, self._folder, self._classes, self._findings = path, images, classes, findings
        self._images: list[ImageRecord] = []
        self._columns: dict[str, list[Any]] = {
            key: [] for key in ("image", "category", "box", "area", "ignore", "mask")
        }
        self._origins: dict[str, list[str]] = {"images": [], "annotations": []}

    @property
    def size(self) -> Size:
        """Height and width of the last image."""
        return self._images[-1].height, self._images[-1].width

    def image(self, file: Path, size: Size, origin: str) -> None:
        """Add an image; objects that follow are in it."""
        name = os.path.relpath(file, self._folder).replace(os.sep, "/")
        self._images.append(ImageRecord(len(self._images) + 1, *size, file_name=name))
        self._origins["images"].append(origin)

    def object(self, category: int, box: Box | None, mask: Any, origin: str, *, ignore: bool = False) -> None:
        """Add an object to the last image.

        Args:
            category: Its category id.
            box: xywh in absolute pixels; None: that of the mask.
            mask: Polygons in absolute pixels or run lengths; None: it has none.
            origin: Where it was read.
            ignore: Whether it is not trained.

        Raises:
            Unusable: A polygon has fewer than three points.
        """
        image = self._images[-1]
        if isinstance(mask, list):
            mask = [[round(float(value), DIGITS) for value in polygon] for polygon in mask]
            if min(map(len, mask)) < 6:
                raise unusable("with a polygon of fewer than three points", f"{min(map(len, mask)) // 2} points")
            if max(abs(value) for polygon in mask for value in polygon) > FARTHEST:
                raise unusable("with a point beyond a million pixels", str(mask)[:60])
        area = None if mask is None else float(coco_mask.area(compressed(mask, image.height, image.width)))
        if box is None:
            box = _bounds(mask) if isinstance(mask, list) else tuple(coco_mask.toBbox(mask).tolist())
        x, y, w, h = (round(value, DIGITS) for value in box)
        values = (image.id, category, (x, y, w, h), w * h if area is None else area, int(ignore), mask)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._origins["annotations"].append(origin)

    def gather(self, kind: str, origin: str, add: Callable[[], None]) -> bool:
        """Add something; if it cannot be used, note a fault and return False."""
        try:
            add()
        except Unusable as error:
            self._findings.fault(f"{kind} {error.kind}", f"{origin}: {error}")
            return False
        return True

    def records(self) -> Records:
        """Return everything."""
        columns, count = self._columns, len(self._columns["image"])
        categories = [CategoryRecord(number, name) for number, name in sorted(self._classes.items())]
        return Records(
            path=self._path,
            federated=False,
            images=self._images,
            categories=categories,
            positions={
                "images": np.arange(len(self._images)),
                "categories": np.arange(len(categories)),
                "annotations": np.arange(count),
            },
            ids=np.arange(1, count + 1),
            image_ids=np.array(columns["image"], np.int64),
            category_ids=np.array(columns["category"], np.int64),
            boxes=np.array(columns["box"], np.float64).reshape(-1, 4),
            has_box=np.ones(count, np.bool_),
            areas=np.array(columns["area"], np.float64),
            crowd=np.zeros(count, np.uint8),
            ignore=np.array(columns["ignore"], np.uint8),
            masks=columns["mask"],
            origins=self._origins,
        )


def _bounds(polygons: Sequence[Sequence[float]]) -> Box:
    xy = np.concatenate([np.asarray(polygon).reshape(-1, 2) for polygon in polygons])
    (x, y), (right, bottom) = xy.min(axis=0).tolist(), xy.max(axis=0).tolist()
    return x, y, right - x, bottom - y


def numbered(names: Iterable[str]) -> dict[int, str]:
    """Return class names by category id, in alphabetical order from 1."""
    return dict(enumerate(sorted(set(names)), 1))


def words(text: str) -> list[str]:
    """Return the runs of letters of a file name, in lower case."""
    return re.findall(r"[a-z]+", text.lower())

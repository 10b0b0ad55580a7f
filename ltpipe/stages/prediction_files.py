"""What ``ltpipe predict`` writes of every picture: detections, drawn pictures, crops."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from ltpipe.data.categories import Categories
from ltpipe.engine.predicting import PictureDetections
from ltpipe.report.drawing import Marks, bitmap, crop, draw, jpeg


@dataclass(frozen=True)
class Wanted:
    """What is written beside the detections.

    Attributes:
        pictures: Drawn pictures.
        crops: A picture of every detected object.
    """

    pictures: bool = True
    crops: bool = False


class Writer:
    """Writes the detections of one picture after the other.

    Args:
        folder: Where to.
        stream: The file of detections, open.
        classes: What the detector knows.
        least: ``(K,)`` least scores.
        longer: Pixels to add to the sides of boxes, see :func:`~ltpipe.engine.geometry.last_pixel`.
        wanted: What else.

    Attributes:
        images: Records of the pictures, in COCO's format.
        count: Detections written.
    """

    def __init__(
        self,
        folder: Path,
        stream: BinaryIO,
        classes: Categories,
        least: NDArray[np.float64],
        longer: int,
        wanted: Wanted,
    ) -> None:
        self.images: list[dict[str, Any]] = []
        self.count = 0
        self._folder, self._stream, self._classes, self._least = folder, stream, classes, least
        self._longer, self._wanted, self._encoder = longer, wanted, msgspec.json.Encoder()

    def add(self, found: PictureDetections) -> None:
        """Write what was found in a picture."""
        picture, detections, pixels = found
        height, width = detections["size"]
        record = {"id": len(self.images) + 1, "file_name": picture.name, "width": int(width), "height": int(height)}
        if picture.frame is not None:
            record |= {"video": picture.name.rpartition("/")[0], "frame": picture.frame}
        self.images.append(record)
        keep = np.flatnonzero(detections["scores"] >= self._least[detections["labels"]])
        for row in keep.tolist():
            text = self._encoder.encode(self._record(record, detections, row))
            self._stream.write((b",\n" if self.count else b"") + text)
            self.count += 1
        if self._wanted.pictures or self._wanted.crops:
            self._draw(picture.name, detections, keep, pixels)

    def _record(self, image: Mapping[str, Any], found: Mapping[str, Any], row: int) -> dict[str, Any]:
        x0, y0, x1, y1 = found["bboxes"][row].astype(float).tolist()
        label = int(found["labels"][row])
        record = {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "category_id": self._classes.ids[label],
            "category": self._classes.names[label],
            "bbox": [x0, y0, x1 - x0 + self._longer, y1 - y0 + self._longer],
            "score": float(found["scores"][row]),
        }
        if found["masks"] is not None:
            mask = found["masks"][row]
            size = [int(side) for side in mask["size"]]
            record["segmentation"] = {"size": size, "counts": mask["counts"].decode("ascii")}
        return record

    def _draw(self, name: str, found: Mapping[str, Any], keep: NDArray[np.int64], pixels: Any) -> None:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 or pixels.shape[2] == 1 else pixels
        keep = keep[np.argsort(found["scores"][keep], kind="stable")]  # the best lie above
        labels, scores = found["labels"][keep].tolist(), found["scores"][keep].tolist()
        if self._wanted.pictures:
            masks = None if found["masks"] is None else [bitmap(found["masks"][row], *pixels.shape[:2]) for row in keep]
            names = [self._classes.names[label] for label in labels]
            texts = [f"{text} {score:.2f}" for text, score in zip(names, scores, strict=True)]
            drawn = draw(pixels, Marks(found["bboxes"][keep], texts, labels, masks))
            _write(self._folder / "pictures" / Path(name).with_suffix(".jpg"), name, drawn)
        if self._wanted.crops:
            for place, (row, label) in enumerate(zip(keep[::-1], labels[::-1], strict=True), 1):
                # Ids tell classes apart whose names are alike as folders.
                safe = re.sub(r"[^-\w.]+", "_", self._classes.names[label])
                folder = f"{self._classes.ids[label]}_{safe}"
                file = f"{name.replace('/', '__')}_{place}.jpg"
                _write(self._folder / "crops" / folder / file, file, crop(pixels, found["bboxes"][row]))


def _write(file: Path, name: str, image: Any) -> None:
    """Write a picture; one whose name another has already (``a.png`` beside ``a.jpg``) keeps its own suffix in it."""
    if file.exists():
        file = file.with_name(f"{Path(name).name}.jpg")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(image, 92))

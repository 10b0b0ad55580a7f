"""Small pictures of objects and detections, cut out of their images, ready for a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltpipe.data.images import read_as_annotated
from ltpipe.data.store import AnnotationStore
from ltpipe.errors import UserError
from ltpipe.metrics.predictions import Predictions
from ltpipe.report.captioned import Shot
from ltpipe.report.drawing import Image, Marks, bitmap, draw, jpeg, window

TRUTH, FOUND, WRONG = 2, 0, 6
"""Colours: objects of the annotations, right detections, wrong ones."""
THUMBNAIL, SCENE, QUALITY, MARGIN, KEPT = 260, 460, 78, 0.45, 48


@dataclass(frozen=True)
class Outline:
    """One object or detection to draw.

    Attributes:
        box: ``(4,)`` xyxy, absolute pixels.
        mask: ``(H, W)``, or None.
        text: Label.
        colour: One of the colours above.
    """

    box: NDArray[np.float64]
    mask: NDArray[np.bool_] | None
    text: str
    colour: int


class Shelf:
    """The images of a data set with their objects; the last ones stay in memory.

    Args:
        store: The annotations.
        folder: The images.

    Attributes:
        unreadable: Why an image cannot be shown, by its name.
    """

    def __init__(self, store: AnnotationStore, folder: Path) -> None:
        self.store, self.unreadable = store, dict[str, str]()
        self._folder = folder
        self.image = lru_cache(KEPT)(self._image)

    def _image(self, row: int) -> Image | None:
        """Return the image of a store row; None if it cannot be read, which is remembered."""
        name = self.store.image_file(row)
        height, width = self.store.image_sizes[row].tolist()
        try:
            return read_as_annotated(self._folder / name, (height, width), int(self.store.image_ids[row]))
        except UserError as error:
            self.unreadable[name] = f"{error.what}: {error.got}"
            return None

    def object(self, row: int, text: str = "", colour: int = TRUTH) -> Outline:
        """Return an annotation row."""
        x, y, w, h = self.store.ann_bbox[row].tolist()
        height, width = self.store.image_sizes[self.store.ann_image[row]].tolist()
        mask = bitmap(self.store.segmentation(row), height, width)
        return Outline(np.array([x, y, x + w, y + h]), mask, text, colour)

    def cut(self, image_row: int, outlines: Sequence[Outline], caption: str) -> Iterable[Shot]:
        """Yield the part of an image that holds all outlines, with them drawn; nothing if the image is unreadable."""
        image = self.image(image_row)
        if image is None:
            return
        boxes = np.array([one.box for one in outlines])
        whole = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
        least = np.maximum(0, 24 - (whole[2:] - whole[:2])) / 2  # a few pixels by themselves show nothing
        whole += np.concatenate([-least, least])
        x0, y0, x1, y1 = window(image.shape[:2], whole, MARGIN)
        shift = np.array([x0, y0, x0, y0])
        moved = [
            Outline(one.box - shift, None if one.mask is None else one.mask[y0:y1, x0:x1], one.text, one.colour)
            for one in outlines
        ]
        yield Shot(drawn(image[y0:y1, x0:x1], moved, THUMBNAIL), caption)

    def scene(self, image_row: int, outlines: Sequence[Outline], caption: str) -> Iterable[Shot]:
        """Yield a whole image with outlines; nothing if it is unreadable."""
        image = self.image(image_row)
        if image is not None:
            yield Shot(drawn(image, outlines, SCENE), caption)


def drawn(image: Image, outlines: Sequence[Outline], longest: int) -> bytes:
    """Return an image with outlines as JPEG whose longer side has so many pixels."""
    masks = [one.mask for one in outlines] if any(one.mask is not None for one in outlines) else None
    boxes = np.array([one.box for one in outlines]).reshape(-1, 4)
    marks = Marks(boxes, [one.text for one in outlines], [one.colour for one in outlines], masks)
    return jpeg(draw(np.ascontiguousarray(image), marks, longest=longest, least=longest), QUALITY)


def detection(predictions: Predictions, row: int, text: str, colour: int) -> Outline:
    """Return a detection; one without a box is framed by its mask."""
    mask: NDArray[np.bool_] | None = None
    if predictions.masks is not None:
        height, width = predictions.masks.sizes[row].tolist()
        counts: Any = predictions.masks.counts(np.array([row]))[0]
        mask = bitmap({"size": [height, width], "counts": counts}, height, width)
    if predictions.boxes is not None:
        x, y, w, h = predictions.boxes[row].astype(np.float64).tolist()
        return Outline(np.array([x, y, x + w, y + h]), mask, text, colour)
    assert mask is not None
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 1, 1]
    return Outline(np.array(box, np.float64), mask, text, colour)

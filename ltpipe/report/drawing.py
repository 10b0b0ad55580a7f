"""Objects drawn on images, by the annotators of ``supervision``.

That library draws masks, boxes and labels on numpy arrays with OpenCV and Pillow and loads no torch, as mmdet's
visualizer does: pictures can be made of any detector's files where no torch is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import supervision as sv
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# White text stays readable on all of them.
COLOURS = (
    "#0072b2", "#b34700", "#00704f", "#a0307a", "#5b4bb5", "#7a5c00", "#c0283c", "#2f6f8f",
    "#4f7a1e", "#8a3fb0", "#a85a2a", "#1f7a7a", "#6b6b6b", "#b03a6e", "#3d5fc4",
)  # fmt: skip
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
LEAST = 640
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Marks:
    """What is drawn on one image.

    Attributes:
        boxes: ``(N, 4)`` xyxy, absolute pixels.
        texts: ``N`` labels; an empty one is left out.
        colours: ``N`` numbers; the same number is the same colour in every picture.
        masks: ``N`` ``(H, W)`` masks or None for an object without one; None: no masks.
    """

    boxes: NDArray[Any]
    texts: Sequence[str]
    colours: Sequence[int]
    masks: Sequence[NDArray[np.bool_] | None] | None = None


def draw(image: Image, marks: Marks, *, longest: int | None = None, least: int = LEAST) -> Image:
    """Return a copy of an image with masks, boxes and labels.

    Args:
        image: ``(H, W, 3)`` BGR.
        marks: What to draw; later ones lie above.
        longest: Most pixels of the longer side of the result; None: any.
        least: Least pixels of it: smaller images are enlarged, so that there is room for labels.
    """
    scaled = fit(image, longest, least)
    ratio = np.array([scaled.shape[1] / image.shape[1], scaled.shape[0] / image.shape[0]] * 2)
    if not len(marks.boxes):
        return scaled
    size = max(scaled.shape[:2])
    lookup = np.asarray(marks.colours, np.int64)
    found = sv.Detections(xyxy=np.asarray(marks.boxes, np.float64) * ratio, class_id=lookup)
    if marks.masks is not None:
        found.mask = np.stack([_fitted(mask, scaled.shape[:2]) for mask in marks.masks])
        scaled = sv.MaskAnnotator(_palette(), opacity=0.4).annotate(scaled, found, custom_color_lookup=lookup)
    thick = max(2, round(size / 350))
    scaled = sv.BoxAnnotator(_palette(), thickness=thick).annotate(scaled, found, custom_color_lookup=lookup)
    named = np.array([bool(text) for text in marks.texts])
    if named.any():
        labels = sv.RichLabelAnnotator(
            _palette(), font_path=str(FONT), font_size=int(np.clip(size / 42, 10, 40)), text_padding=max(2, thick),
            smart_position=True,
        )  # fmt: skip
        shown = sv.Detections(xyxy=found.xyxy[named], class_id=lookup[named])
        texts = [text for text in marks.texts if text]
        scaled = labels.annotate(scaled, shown, labels=texts, custom_color_lookup=lookup[named])
    return np.ascontiguousarray(scaled)


def fit(image: Image, longest: int | None, least: int = 0) -> Image:
    """Return a copy whose longer side has at most and at least so many pixels."""
    height, width = image.shape[:2]
    wanted = max(least, min(max(height, width), longest or max(height, width)))
    if wanted == max(height, width):
        return image.copy()
    ratio = wanted / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


def crop(image: Image, box: NDArray[Any] | Sequence[float]) -> Image:
    """Return the part of an image in a box, xyxy; at least one pixel."""
    x0, y0, x1, y1 = window(image.shape[:2], box, 0.0)
    return image[y0:y1, x0:x1]


def window(size: Sequence[int], box: NDArray[Any] | Sequence[float], margin: float) -> tuple[int, int, int, int]:
    """Return the whole pixels of a box, xyxy, with a margin in parts of its sides, inside an image of a size."""
    left, top, right, bottom = (float(value) for value in box)
    wide, high = margin * (right - left), margin * (bottom - top)
    x0, y0 = (int(np.clip(np.floor(v), 0, limit - 1)) for v, limit in ((left - wide, size[1]), (top - high, size[0])))
    x1, y1 = int(np.ceil(min(right + wide, size[1]))), int(np.ceil(min(bottom + high, size[0])))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def jpeg(image: Image, quality: int = 85) -> bytes:
    """Return an image as JPEG."""
    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "images in memory can be encoded"
    return bytes(content)


def bitmap(mask: Any, height: int, width: int) -> NDArray[np.bool_] | None:
    """Return a mask of a store or of a results file as ``(H, W)``; None if there is none."""
    if not mask:
        return None
    if isinstance(mask, Mapping):
        rle = coco_mask.frPyObjects(dict(mask), height, width) if isinstance(mask["counts"], list) else dict(mask)
    else:
        rle = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    decoded: NDArray[np.bool_] = coco_mask.decode(rle).astype(bool)
    return decoded


def _fitted(mask: NDArray[np.bool_] | None, size: Sequence[int]) -> NDArray[np.bool_]:
    if mask is None:
        return np.zeros(tuple(size), bool)
    if mask.shape == tuple(size):
        return mask
    return np.asarray(cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST), bool)


@cache
def _palette() -> sv.ColorPalette:
    return sv.ColorPalette.from_hex(list(COLOURS))

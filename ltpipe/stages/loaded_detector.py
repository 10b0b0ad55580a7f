"""A detector in memory for notebooks and scripts: images in, a table of detections out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.image_sources import Broken, Picture
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import load_model
from ltpipe.engine.predicting import prediction_pipeline, predictions
from ltpipe.errors import UserError
from ltpipe.stages.trained_detector import Detector, find_detector

Image = str | Path | NDArray[np.uint8]
COLUMNS = ("image", "category_id", "category", "score", "x1", "y1", "x2", "y2")


class LoadedDetector:
    """A detector in evaluation mode; :func:`ltpipe.load_detector` makes it.

    Args:
        detector: What to load.

    Attributes:
        classes: Names of its classes, in label order.
        category_ids: Their ids in the annotations it was trained on.
        model: The mmdet detector.
    """

    def __init__(self, detector: Detector) -> None:
        self.classes, self.category_ids = tuple(detector.classes.names), tuple(detector.classes.ids)
        self.model = load_model(detector.model, detector.weights)
        self._pipeline = prediction_pipeline(detector.test_pipeline)
        self._longer = last_pixel(detector.model)

    @classmethod
    def find(cls, named: str, checkpoint: str | None, results: Path) -> LoadedDetector:
        """Load a checkpoint of an experiment, or an exported detector.

        Raises:
            UserError: There is none.
        """
        return cls(find_detector(named, checkpoint, results))

    def __call__(self, images: Image | Sequence[Image], *, score: float = 0.3, batch_size: int = 1) -> pd.DataFrame:
        """Detect objects.

        Args:
            images: Files, or ``(H, W, 3) uint8`` arrays, BGR as OpenCV reads them; one or several.
            score: Least score.
            batch_size: Images per forward pass.

        Returns:
            A row per detection: ``image`` (the file as given, or the place in the list), ``category_id``, ``category``,
            ``score``, ``x1``, ``y1``, ``x2``, ``y2`` (xyxy, absolute pixels) and, of detectors with masks, ``mask``
            (compressed run lengths, ``{"size": [H, W], "counts": bytes}``).

        Raises:
            UserError: An image cannot be read, or is no such array.
        """
        given = [images] if isinstance(images, str | Path | np.ndarray) else list(images)
        pictures = (_picture(image, place) for place, image in enumerate(given))
        rows: list[dict[str, Any]] = []
        for place, item in enumerate(predictions(self.model, self._pipeline, pictures, batch_size)):
            if isinstance(item[1], Broken):
                raise UserError("an image cannot be read", where=given[place], got=item[1])
            name = place if isinstance(given[place], np.ndarray) else str(given[place])
            rows += self._rows(name, item[1], score)
        with_masks = rows and "mask" in rows[0]
        return pd.DataFrame(rows, columns=[*COLUMNS, *(["mask"] if with_masks else [])])

    def _rows(self, image: str | int, found: Any, score: float) -> Iterator[dict[str, Any]]:
        for row in np.flatnonzero(found["scores"] >= score).tolist():
            label = int(found["labels"][row])
            x1, y1, x2, y2 = found["bboxes"][row].astype(float).tolist()
            facts = (image, self.category_ids[label], self.classes[label], float(found["scores"][row]))
            values = dict(zip(COLUMNS, (*facts, x1, y1, x2 + self._longer, y2 + self._longer), strict=True))
            yield values if found["masks"] is None else {**values, "mask": found["masks"][row]}


def _picture(image: Image, place: int) -> Picture:
    if not isinstance(image, np.ndarray):
        return Picture(str(image), Path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}"
        raise UserError("not an image", where=f"images[{place}]", got=got, allowed="uint8 (H, W, 3), BGR")
    return Picture(str(place), Path(f"{place}"), pixels=np.ascontiguousarray(image))

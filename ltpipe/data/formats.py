"""Which format an annotation file has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ltpipe.data.readers.coco import read_images

Format = Literal["lvis", "coco"]


def annotation_format(path: Path) -> Format:
    """Return ``lvis`` if any image lists categories that were verified to be absent, else ``coco``.

    Raises:
        UserError: The file cannot be read, or is no annotation file.
    """
    federated = any(image.neg_category_ids is not None for image in read_images(path))
    return "lvis" if federated else "coco"

"""Images and instances per category, counted from the annotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltpipe.data.store import AnnotationStore
from ltpipe.frequency import frequency_groups


def count_classes(
    image: NDArray[np.integer], category: NDArray[np.integer], num_categories: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the images and instances of every category.

    Args:
        image: ``(A,)`` image row of each annotation.
        category: ``(A,)`` category row of each annotation.
        num_categories: Number of categories ``C``.

    Returns:
        Image counts and instance counts, each ``(C,) int64``.
    """
    pairs = np.unique(image.astype(np.int64) * num_categories + category)
    images = np.bincount(pairs % max(num_categories, 1), minlength=num_categories)
    return images, np.bincount(category, minlength=num_categories)


def class_statistics(store: AnnotationStore, limits: Sequence[int] | None = None) -> pd.DataFrame:
    """Return one row per category, in file order.

    Instances and images are counted from the annotations, never taken from the file's own count fields; crowd regions
    and ignored annotations do not count. The frequency group is the file's where all its categories have one
    (in LVIS validation files it speaks of the training set), else it follows from the counted images.

    Args:
        store: The annotations.
        limits: Most images of a rare and of a common class: the groups follow from the counted images in any case.

    Returns:
        Columns ``category_id`` int64, ``name`` str, ``image_count`` int64, ``instance_count`` int64, ``frequency``
        (``r``, ``c``, ``f``).
    """
    used = ~(store.ann_iscrowd | store.ann_ignore)
    images, instances = count_classes(store.ann_image[used], store.ann_category[used], len(store.category_ids))
    return pd.DataFrame(
        {
            "category_id": np.array(store.category_ids),
            "name": store.category_names,
            "image_count": images,
            "instance_count": instances,
            "frequency": store.category_frequency if limits is None else frequency_groups(images, limits),
        }
    )

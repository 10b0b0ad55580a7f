"""Classes grouped by how often they occur in training: the limits that apply where an experiment says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FREQUENCY_LIMITS = (10, 100)
"""LVIS: rare classes have up to so many training images, common ones up to so many, frequent ones more."""
BIN_EDGES = (10, 100, 1000)
"""Edges of the bins over training instances: SimCal (arXiv 2007.11978) on LVIS."""
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}


def frequency_groups(
    image_counts: Sequence[int] | NDArray[np.integer], limits: Sequence[int] = FREQUENCY_LIMITS
) -> list[str]:
    """Return ``r``, ``c`` or ``f`` per class.

    Args:
        image_counts: ``(K,)`` training images.
        limits: Most images of a rare and of a common class.
    """
    group = np.searchsorted(limits, np.asarray(image_counts), side="left")
    return [str(letter) for letter in np.array(list(FREQUENCY_NAMES))[group]]

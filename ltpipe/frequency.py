"""Classes grouped by how often they occur in training: the limits that apply where an experiment says nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

FREQUENCY_LIMITS = (10, 100)
"""LVIS: rare classes have up to so many training images, common ones up to so many, frequent ones more."""
BIN_EDGES = (10, 100, 1000)
"""Edges of the bins over training instances: SimCal (arXiv 2007.11978) on LVIS."""
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}


def frequency_groups(image_counts: Iterable[int], limits: Sequence[int] = FREQUENCY_LIMITS) -> list[str]:
    """Return ``r``, ``c`` or ``f`` per class.

    Args:
        image_counts: Training images per class.
        limits: Most images of a rare and of a common class.
    """
    return ["rcf"[bisect_left(limits, count)] for count in image_counts]

"""Classes grouped by how often they occur in training: the limits that apply where an experiment says nothing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from ltpipe.errors import UserError

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


def bins_of(instance_counts: Iterable[float], edges: Sequence[float] = BIN_EDGES, *, where: object = None) -> list[int]:
    """Return the bin of each class: 0 below the first edge, then one more for each edge that is reached.

    Args:
        instance_counts: Training instances per class.
        edges: Where the bins after the first begin.
        where: What says the edges.

    Raises:
        UserError: The edges are not positive or do not ascend.
    """
    if not len(edges) or list(edges) != sorted(set(edges)) or edges[0] <= 0:
        raise UserError(
            "edges of bins must be positive and ascend", where=where, got=list(edges), allowed="10, 100, 1000"
        )
    return [bisect_right(edges, count) for count in instance_counts]

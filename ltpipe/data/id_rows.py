"""From ids to rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def row_of(ids: Ids, known: Ids) -> Ids:
    """Return ``(N,) int64`` places of ``ids`` in the unique, unsorted list ``known``; -1 where an id is unknown."""
    if not len(known):
        return np.full(len(ids), -1, np.int64)
    low, high = int(known.min()), int(known.max())
    if high - low < len(ids) + len(known):  # look every id up in a table; its last place is for those outside
        table = np.full(high - low + 2, -1, np.int64)
        table[known - low] = np.arange(len(known))
        if len(ids) and (ids.min() < low or ids.max() > high):
            return table[np.where((ids >= low) & (ids <= high), ids - low, -1)]
        return table[ids - low]
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    return np.where(known[order[place]] == ids, order[place], -1)

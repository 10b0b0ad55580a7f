"""From ids to rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def row_of(ids: Ids, known: Ids) -> Ids:
    """Return ``(N,) int64`` places of ``ids`` in the unique, unsorted list ``known``; -1 where an id is unknown."""
    return np.asarray(pd.Index(known).get_indexer(ids), np.int64)

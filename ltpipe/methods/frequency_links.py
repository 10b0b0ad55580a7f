"""Functions of a class's share of the training data that IIF weighs logits by and FRACAL shifts them by. Torch-free.

With ``n`` the training images (or instances) of a class, ``T`` the number of images (or instances) and ``r = n / T``:

    raw ln(1/r)     smooth ln((T+1)/(n+1)) + 1     rel ln((T-n)/n)     normit -Phi^-1(r)
    gombit -ln(-ln(1-r))     base2 log2(1/r)       base10 log10(1/r)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

# Written as the published tables were computed: log1p(-r) would be more accurate and differ in the 12th digit.
FORMULAS: dict[str, Callable[[Floats, float], Floats]] = {
    "raw": lambda n, total: np.log(total / n),
    "smooth": lambda n, total: np.log((total + 1) / (n + 1)) + 1,
    "rel": lambda n, total: np.log((total - n) / n),
    "normit": lambda n, total: -ndtri(n / total),
    "gombit": lambda n, total: -np.log(-np.log(1 - n / total)),
    "base2": lambda n, total: np.log2(total / n),
    "base10": lambda n, total: np.log10(total / n),
}
DIVERGE_AT_ONE = ("rel", "normit", "gombit")


def seen_counts(counts: Sequence[int] | NDArray[np.integer], method: str) -> Floats:
    """Return counts of at least 1, ``(K,)`` float64; warns of classes without training data, which count as 1.

    Args:
        counts: ``(K,)`` training images or instances per class.
        method: Named in the warning.
    """
    n = np.asarray(counts, dtype=np.float64)
    unseen = np.flatnonzero(n < 1)
    if len(unseen):
        shown = ", ".join(map(str, unseen[:10])) + (", ..." if len(unseen) > 10 else "")
        warnings.warn(f"classes with label {shown} have no training data: {method} counts them as 1", stacklevel=2)
    return np.maximum(n, 1)

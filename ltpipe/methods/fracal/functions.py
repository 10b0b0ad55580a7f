"""Shifts of FRACAL (Alexandridis et al., CVPR 2025, arXiv 2410.11774; code ``kostas1515/FRACAL``). Torch-free.

With ``r = n / T`` the share of images with a class (or of instances), ``C`` classes, ``D_c`` the fractal dimension of
where the objects of class ``c`` lie and ``lambda`` its strength:

    w_c = link(r_c) - link(1 / C)                                     link: :mod:`ltpipe.methods.frequency_links`
    softmax heads: softmax(z + [w - lambda ln D, 0])
    sigmoid heads: sigmoid(z) sigmoid(z + w + s),   s_c = -log10(D_c^lambda / sum_j D_j^lambda) - log10 C
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError
from ltpipe.methods.frequency_links import DIVERGE_AT_ONE, FORMULAS, Floats, seen_counts

Variant = Literal["none", "raw", "smooth", "smooth_published", "prob", "normit", "gombit", "base2", "base10"]
SMOOTH_COUNT = {"image": 300, "instance": 1000}
"""``k`` of ``smooth``: a class of the uniform prior has this many images, or instances, of ``C k``."""


def frequency_shift(
    counts: Sequence[int] | NDArray[np.integer], total: int, variant: str = "base10", count: str = "image"
) -> Floats:
    """Return ``w``, ``(C,)`` float64; classes without data count as having one.

    Args:
        counts: ``(C,)`` training images or instances per class.
        total: ``T``: all training images, or instances.
        variant: Link; ``smooth_published`` is 2 higher than ``smooth``, a sign error of the authors' code.
        count: What is counted, which decides ``k`` of ``smooth``.
    """
    n, classes = seen_counts(counts, "FRACAL"), len(counts)
    if variant == "none":
        return np.zeros(classes)
    if variant.startswith("smooth"):
        k = SMOOTH_COUNT[count]
        uniform = np.log((classes * k + 1) / (k + 1)) + (1 if variant == "smooth" else -1)
        return FORMULAS["smooth"](n, float(total)) - uniform
    link = "rel" if variant == "prob" else variant
    if link in DIVERGE_AT_ONE:
        n = np.minimum(n, total - 0.5)
    # A single class is everywhere.
    uniform = FORMULAS[link](np.ones(1), float(classes))[0] if classes > 1 else 0.0
    return FORMULAS[link](n, float(total)) - uniform


def softmax_shift(shift: Floats, dimension: Floats, strength: float) -> Floats:
    """Return ``w - lambda ln D``, ``(C,)`` float64."""
    return shift - strength * np.log(dimension)


def sigmoid_shift(shift: Floats, dimension: Floats, strength: float) -> Floats:
    """Return ``w + s``, ``(C,)`` float64."""
    powers = dimension**strength
    return shift - np.log10(powers / powers.sum()) - np.log10(len(powers))


def read_dimensions(
    path: str | Path, names: Sequence[str] | None, ranks: Sequence[int] | None, num_classes: int
) -> Floats:
    """Read the fractal dimensions of a table as the authors ship them.

    Args:
        path: CSV with the columns ``class_names`` and ``fractal_dimension``, a row per class by ascending category id.
        names: Names of the classes, compared with those of the table; None: not compared.
        ranks: Row of every class; None: the same order.
        num_classes: ``C``.

    Returns:
        ``(C,)`` float64.

    Raises:
        UserError: It cannot be read, or is that of another data set.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        dimension = np.array([float(row["fractal_dimension"]) for row in rows])
        listed = [row["class_names"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "unreadable table of fractal dimensions",
            where=path,
            got=f"{type(error).__name__}: {error}",
            allowed="CSV with the columns class_names and fractal_dimension",
        ) from error
    order = list(range(num_classes)) if ranks is None else list(ranks)
    if len(rows) <= max(order, default=-1) or not np.isfinite(dimension).all() or (dimension <= 0).any():
        raise UserError(
            "the table of fractal dimensions does not fit the classes",
            where=path,
            got=f"{len(rows)} rows for {num_classes} classes",
            allowed="a positive dimension for every class of the data set",
        )
    wrong = [(name, listed[row]) for name, row in zip(names or [], order, strict=False) if name != listed[row]]
    if wrong:
        raise UserError(
            "the table of fractal dimensions is another data set's",
            where=path,
            got=f"{wrong[0][1]} where the data set has {wrong[0][0]}; {len(wrong)} names differ",
        )
    return dimension[order]

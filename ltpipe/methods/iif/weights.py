"""Class weights of IIF (Alexandridis et al., IEEE TIP 2023, arXiv 2209.04861; code ``kostas1515/iif``). Torch-free.

With ``n`` the training images (or instances) of a class, ``T`` the number of images (or instances) and ``r = n / T``:

    raw ln(1/r)     smooth ln((T+1)/(n+1)) + 1     rel ln((T-n)/n)     normit -Phi^-1(r)
    gombit -ln(-ln(1-r))     base2 log2(1/r)       base10 log10(1/r)

``T`` of the image counts is the number of images in the annotation file, annotated or not. Counts are those of the
training set before any repetition.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError, unknown_name
from ltpipe.methods.frequency_links import DIVERGE_AT_ONE, FORMULAS, Floats

Variant = Literal["raw", "smooth", "rel", "normit", "gombit", "base2", "base10"]
Count = Literal["image", "instance"]
ALIASES = {"prob": "rel"}
OBJECT = "_obj"


def parse_variant(name: str, count: str | None = None) -> tuple[str, str]:
    """Return the public variant and count of a name as users, configs or tables write it.

    Args:
        name: A variant, also ``prob`` (= ``rel``) and the tables' ``<variant>_obj`` (instance counts).
        count: ``image`` or ``instance``; None: what the name says.

    Raises:
        UserError: The name is unknown, or says ``_obj`` where image counts are asked for.
    """
    base = name.removesuffix(OBJECT)
    variant = ALIASES.get(base, base)
    if variant not in FORMULAS:
        raise unknown_name("IIF variant", name, [*FORMULAS, *ALIASES])
    implied = "instance" if name.endswith(OBJECT) else None
    if count not in (None, "image", "instance"):
        raise unknown_name("IIF count", str(count), ["image", "instance"])
    if implied and count == "image":
        raise UserError(
            "the IIF variant and its count disagree",
            got=f"variant {name!r} with count 'image'",
            fix=f"write variant: {variant} and count: image or instance",
        )
    return variant, implied or count or "image"


def iif_weights(
    counts: Sequence[int] | NDArray[np.integer],
    total: int,
    variant: str = "raw",
    *,
    p_norm: int = 0,
    min_weight: float | None = None,
) -> Floats:
    """Return the weights of the foreground classes.

    Args:
        counts: ``(K,)`` training images or instances per class.
        total: ``T``: number of images or instances.
        variant: Formula, see the module.
        p_norm: Divide the vector by its p-norm; 0: do not (classification code).
        min_weight: Raise smaller weights to this value; None: keep them as published.

    Returns:
        ``(K,)`` float64, finite. Warns of classes without data, which count as 1, of classes that are everywhere (their
        ratio is clamped to ``1 - 1 / (2 T)`` where the formula diverges), and of weights that are not positive.

    Raises:
        UserError: A count is negative or above ``total``.
    """
    variant, _ = parse_variant(variant)
    n = np.asarray(counts, dtype=np.float64)
    _check_counts(n, total)
    n = np.maximum(n, 1)
    everywhere = n >= total
    if everywhere.any() and variant in DIVERGE_AT_ONE:
        _warn(everywhere, f"occur everywhere: IIF {variant} diverges, their ratio is clamped to 1 - 1/(2 T)")
        n = np.minimum(n, total - 0.5)
    weights = FORMULAS[variant](n, float(total))
    if p_norm:
        weights = weights / np.linalg.norm(weights, p_norm)
    if min_weight is not None:
        weights = np.maximum(weights, min_weight)
    if (weights <= 0).any():
        _warn(weights <= 0, f"have an IIF {variant} weight of 0 or less, which removes or inverts their logit")
    return weights


def with_background(weights: Floats, background: float = 1.0) -> Floats:
    """Append the background weight: ``(K,)`` -> ``(K + 1,)`` float64."""
    return np.append(weights, background)


def describe(weights: Floats) -> str:
    """Return the range of weights, ``min / median / max``."""
    if not len(weights):
        return "no classes"
    return " / ".join(f"{value:.3g}" for value in (weights.min(), np.median(weights), weights.max()))


def _check_counts(n: Floats, total: int) -> None:
    if n.ndim != 1 or (n < 0).any() or (n > total).any() or total < 1:
        bad = np.flatnonzero((n < 0) | (n > total)) if n.ndim == 1 else np.empty(0, np.int64)
        raise UserError(
            "IIF cannot weight classes by these counts",
            got=f"class {bad[0]} (label) has {n[bad[0]]:g} of {total}" if len(bad) else f"total {total}",
            allowed="one count per class between 0 and the total",
            fix="give the number of images of the annotation file the counts come from (num_images)",
        )
    if (n == 0).any():
        _warn(n == 0, "have no training data: IIF counts them as 1")


def _warn(which: NDArray[np.bool_], text: str) -> None:
    labels = np.flatnonzero(which)
    shown = ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")
    warnings.warn(f"classes with label {shown} {text}", stacklevel=3)

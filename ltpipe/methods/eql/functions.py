"""The equations of EQL (arXiv 2003.05176), DropLoss (AAAI 2021) and GOL (ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.methods.sigmoid_loss import one_hot

LOWEST, HIGHEST = -4.0, 10.0
"""Between which GOL's repository keeps the logits of a training."""
SMALLEST_VARIANCE = 1e-12
"""Smallest divisor of the backward pass of torch's binary cross entropy on scores."""


def tail_classes(statistic: Tensor, threshold: float) -> Tensor:
    """Return ``(K,)`` bool, the classes whose float32 statistic ``(K,)`` lies below the threshold."""
    return statistic.float() < threshold


def spared_on_foreground(labels: Tensor, tail: Tensor) -> Tensor:
    """Return which terms EQL leaves out, ``(N, K)`` bool: those of tail classes on foreground RoIs, but not their own.

    Args:
        labels: ``(N,)`` int64, background ``K``.
        tail: ``(K,)`` bool.
    """
    num_classes = len(tail)
    own = one_hot(labels, num_classes, num_classes).bool()
    return (labels < num_classes)[:, None] & tail & ~own


def tail_share(labels: Tensor, tail: Tensor) -> Tensor:
    """Return the share of foreground RoIs whose class is in the tail, a float32 scalar; NaN without foreground.

    Args:
        labels: ``(N,)`` int64, background ``K``.
        tail: ``(K,)`` bool.
    """
    foreground = (labels < len(tail)).sum()
    return F.pad(tail, (0, 1))[labels].sum() / foreground


def spared_on_background(labels: Tensor, tail: Tensor, uniform: Tensor) -> Tensor:
    """Return which terms DropLoss leaves out besides EQL's, ``(N, K)`` bool: those of tail classes on background RoIs.

    They are drawn with the probability ``1 - rho``, ``rho`` the :func:`tail_share`; without foreground none is, as in
    the repository.

    Args:
        labels: ``(N,)`` int64, background ``K``.
        tail: ``(K,)`` bool.
        uniform: ``(N, K)`` float32, uniform in [0, 1), one number per RoI and class.
    """
    return (labels == len(tail))[:, None] & tail & (uniform > tail_share(labels, tail))


def kept_rows(terms: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, spared: Tensor) -> Tensor:
    """Return each RoI's loss ``(N,)`` float32, the sum of its terms that are not spared.

    Args:
        terms: Makes terms ``(N, K)`` of logits and targets.
        logits: ``(N, K)`` float32.
        labels: ``(N,)`` int64, background ``K``.
        spared: ``(N, K)`` bool.
    """
    num_classes = logits.shape[1]
    target = one_hot(labels, num_classes, num_classes)
    return (terms(logits, target) * ~spared).sum(dim=1)


def bce_terms(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross entropies of ``sigmoid(z)``, ``(N, C)``."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def gumbel_probability(logits: Tensor) -> Tensor:
    """Return ``exp(-exp(-z))``, the distribution function of the Gumbel distribution."""
    return torch.exp(-torch.exp(-logits))


def gumbel_terms(logits: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross entropies of ``exp(-u)``, ``u = exp(-z)``: ``y u - (1 - y) ln(1 - exp(-u))``.

    Logits are kept in [-4, 10] and have no gradient beyond. Below -3.3, where the variance ``p (1 - p)`` of the score
    lies under 1e-12, the gradient fades as that of the repository does: it passes through torch's binary cross entropy,
    which divides by no less.

    Args:
        logits: ``(N, C)`` float32.
        target: ``(N, C)`` float32 in {0, 1}.
    """
    clamped = logits.clamp(LOWEST, HIGHEST)
    fixed = clamped.detach()
    u = torch.exp(-fixed)
    fade = (torch.exp(-u) * -torch.expm1(-u) / SMALLEST_VARIANCE).clamp(max=1)
    u = torch.exp(-(fixed + fade * (clamped - fixed)))
    return torch.where(target > 0, u, -torch.log(-torch.expm1(-u)))

"""Weights of classes by their number of training instances."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequency_weights(counts: Tensor, low: float = 0.1, high: float = 5.0) -> Tensor:
    """Return class weights ``(1 / n_c) / mean(1 / n)``, clipped.

    Source: FishYuLi/BalancedGroupSoftmax, class re-weighting. A class without instances counts as one instance.

    Args:
        counts: ``(K,)`` training instances.
        low: Smallest weight.
        high: Largest weight.
    """
    inverse = 1 / counts.double().clamp(min=1)
    return (inverse / inverse.mean()).clamp(low, high)


def effective_number_weights(counts: Tensor, beta: float = 0.999, low: float = 0.1, high: float = 5.0) -> Tensor:
    """Return class weights ``(1 - beta) / (1 - beta ** n_c)``, divided by their mean, clipped.

    Source: FishYuLi/BalancedGroupSoftmax, after "Class-Balanced Loss" (arXiv 1901.05555).

    Args:
        counts: ``(K,)`` training instances.
        beta: 0.999 in the source.
        low: Smallest weight.
        high: Largest weight.
    """
    weights = (1 - beta) / (1 - torch.pow(torch.tensor(beta, dtype=torch.float64), counts.double().clamp(min=1)))
    return (weights / weights.mean()).clamp(low, high)

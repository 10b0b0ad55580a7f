"""Weights of classes by their number of training instances, clipped as in the source.

Source: class re-weighting of FishYuLi/BalancedGroupSoftmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST, HIGHEST, BETA = 0.1, 5.0, 0.999


def inverse_frequency_weights(counts: Tensor) -> Tensor:
    """Return class weights ``(1 / n_c) / mean(1 / n)``; a class without instances counts as one instance.

    Args:
        counts: ``(K,)`` training instances.
    """
    return _relative(1 / counts.double().clamp(min=1))


def effective_number_weights(counts: Tensor) -> Tensor:
    """Return class weights ``(1 - beta) / (1 - beta ** n_c)``, after "Class-Balanced Loss" (arXiv 1901.05555).

    Args:
        counts: ``(K,)`` training instances.
    """
    beta = torch.tensor(BETA, dtype=torch.float64)
    return _relative((1 - BETA) / (1 - torch.pow(beta, counts.double().clamp(min=1))))


def _relative(weights: Tensor) -> Tensor:
    return (weights / weights.mean()).clamp(LOWEST, HIGHEST)

"""The equations of the equalized focal loss, EFL, and its quality variant EQFL (CVPR 2022, ModelTC/United-Perception).

A class ``c`` has the focusing parameter ``gamma_c = gamma + s (1 - R_c)``, ``R_c`` the ratio of its accumulated
positive and negative gradients, and the weight ``gamma_c / gamma``. Both functions return the terms of the loss and
the absolute values of their gradients, which need no backward pass.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def efl_terms(logits: Tensor, target: Tensor, gamma: Tensor, base: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Return ``alpha_t (gamma_c / gamma) (1 - p_t)^gamma_c (-ln p_t)`` and ``|d / dz|`` of it, ``(N, K)`` float32.

    ``p_t`` is ``sigmoid(z)`` for positives and ``1 - sigmoid(z)`` for others, ``alpha_t`` ``alpha`` or ``1 - alpha``.

    Args:
        logits: ``(N, K)`` float32.
        target: ``(N, K)`` float32 in {0, 1}.
        gamma: ``(K,)`` float32, ``gamma_c``.
        base: ``gamma``.
        alpha: Weight of positives; below 0: all weigh 1.
    """
    signed = (2 * target - 1) * logits
    weight = gamma / base
    if alpha >= 0:
        weight = weight * (alpha * target + (1 - alpha) * (1 - target))
    log_p = F.logsigmoid(signed)
    terms = weight * (gamma * F.logsigmoid(-signed)).exp() * -log_p
    p, missing, log_p = signed.detach().sigmoid(), (-signed.detach()).sigmoid(), log_p.detach()
    return terms, weight * missing**gamma * (missing - gamma * p * log_p)


def eqfl_terms(logits: Tensor, target: Tensor, gamma: Tensor, base: float) -> tuple[Tensor, Tensor]:
    """Return ``(gamma_c / gamma) |t - p|^gamma_c BCE(z, t)`` and ``|d / dz|`` of it, both ``(N, K)`` float32.

    Args:
        logits: ``(N, K)`` float32; ``p`` is their sigmoid.
        target: ``(N, K)`` float32 in [0, 1], the quality of positives and 0.
        gamma: ``(K,)`` float32, ``gamma_c``.
        base: ``gamma``.
    """
    weight, p = gamma / base, logits.sigmoid()
    distance = (target - p).abs()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    terms = weight * distance**gamma * entropy
    p, distance, entropy = p.detach(), distance.detach(), entropy.detach()
    slope = gamma * distance ** (gamma - 1) * p * (1 - p) * entropy + distance ** (gamma + 1)
    return terms, weight * slope

"""Tensor functions of CRAT: gradient-energy statistics, transfer weights, transfer losses, and their inspection.

The last layer of a branch is linear with one block of weights ``W_i`` per class, ``(c, d)``: ``c = 4`` box coordinates
or ``c = 1`` mask channel. The gradient of one sample's loss with respect to ``W_y`` is therefore the outer product
``u_n v_n^T`` of the gradient at the output, ``u_n (c,)``, and the input, ``v_n (d,)``. Every statistic below is made
of such pairs, so no per-sample backward pass and no per-sample matrix is ever needed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ltpipe.errors import UserError

NORM_FLOOR = 1e-12
# Mask logits handled at a time: few kernels on a GPU, nothing that leaves the cache on a CPU (40 % faster).
CHUNK_ELEMENTS = {"cuda": 1 << 24, "cpu": 1 << 20}


def class_sums(outputs: Tensor, inputs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return ``sum_{n: y_n = i} u_n v_n^T`` for every class ``i``.

    With the gradients of a summed loss as ``outputs`` this is the gradient of the last layer's weight.

    Args:
        outputs: ``(P, c)`` float, ``u``.
        inputs: ``(P, d)`` float, ``v``.
        labels: ``(P,)`` int64 in ``0..K-1``.
        num_classes: ``K``.

    Returns:
        ``(K, c, d)`` float, zero for absent classes.
    """
    outer = outputs[:, :, None] * inputs[:, None, :]
    return outer.new_zeros(num_classes, *outer.shape[1:]).index_add_(0, labels, outer)


def update_energy(energy: Tensor, value: Tensor, present: Tensor, momentum: float, decay_absent: bool) -> None:
    """Move the running statistic towards ``value``, in place: ``F_i <- (1 - a) F_i + a value_i``.

    A batch holds a few dozen of the classes: only their rows are read and written.

    Args:
        energy: ``(K, c, d)`` float32, the statistic.
        value: ``(M, c, d)`` float32, of the classes of this batch.
        present: ``(M,)`` int64, these classes. Without any the statistic stays as it is.
        momentum: ``a``, the weight of the new value.
        decay_absent: Move absent classes towards zero; otherwise their rows keep every bit.
    """
    rows = energy[present].lerp_(value, momentum)
    if decay_absent and len(present):
        energy.lerp_(energy.new_zeros(()).expand_as(energy), momentum)
    energy[present] = rows


def class_norms(energy: Tensor) -> Tensor:
    """Return the length ``(K,)`` of each class's statistic ``(K, c, d)``."""
    norms: Tensor = energy.flatten(1).norm(dim=1)
    return norms


def similarity(outputs: Tensor, inputs: Tensor, energy: Tensor, norms: Tensor) -> Tensor:
    """Return the cosine between each sample's ``u_n v_n^T`` and each class's statistic.

    Args:
        outputs: ``(P, c)`` float, ``u``.
        inputs: ``(P, d)`` float, ``v``.
        energy: ``(K, c, d)`` float.
        norms: ``(K,)`` float, :func:`class_norms` of it.

    Returns:
        ``(P, K)`` float; 0 where either side is zero.
    """
    projected = (inputs @ energy.flatten(0, 1).T).view(len(inputs), *energy.shape[:2])
    dots = (projected * outputs[:, None, :]).sum(dim=2)
    sample_norm = (outputs.norm(dim=1) * inputs.norm(dim=1)).clamp(min=NORM_FLOOR)
    cosine: Tensor = dots / sample_norm[:, None] / norms.clamp(min=NORM_FLOOR)
    return cosine


def transfer_weights(cosine: Tensor, labels: Tensor, temperature: float, receivers: Tensor | None = None) -> Tensor:
    """Return ``w_{n,i} = softmax_{i != y_n}(s_{n,i} / tau)``, with 0 at the sample's own class.

    Args:
        cosine: ``(P, K)`` float, ``s``.
        labels: ``(P,)`` int64 own classes.
        temperature: ``tau``.
        receivers: ``(K,)`` bool, classes that take part; None for all.

    Returns:
        ``(P, K)`` float. Rows sum to 1; a row without any other class to give to is 0.
    """
    blocked = F.one_hot(labels, cosine.shape[1]).bool()
    if receivers is not None:
        blocked = blocked | ~receivers
    weights = (cosine / temperature).masked_fill(blocked, -torch.inf).softmax(dim=1)
    return weights.masked_fill(blocked, 0.0)


def prune_weights(weights: Tensor, threshold: float | None = None, top_k: int | None = None) -> Tensor:
    """Drop undecided samples and small weights; what is left is not rescaled.

    Args:
        weights: ``(P, K)`` float.
        threshold: Zero the samples whose largest weight is below it.
        top_k: Keep this many largest weights of each sample.

    Returns:
        ``(P, K)`` float.
    """
    if threshold is not None:
        weights = weights * (weights.amax(dim=1, keepdim=True) >= threshold)
    if top_k is not None and top_k < weights.shape[1]:
        values, classes = weights.topk(top_k, dim=1)
        weights = torch.zeros_like(weights).scatter_(1, classes, values)
    return weights


def box_transfer_loss(predictions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_n sum_i w_{n,i} sum_k |p_{n,i,k} - t_{n,k}|``.

    Args:
        predictions: ``(P, K, 4)`` float, every class's box deltas (or decoded boxes) of the positive RoIs.
        targets: ``(P, 4)`` float.
        weights: ``(P, K)`` float, constant.

    Returns:
        Scalar.
    """
    return ((predictions - targets[:, None, :]).abs().sum(dim=2) * weights).sum()


class _MaskTransfer(torch.autograd.Function):
    """Weighted sum of mean binary cross-entropies in row chunks; keeps the logits, no copy of their size.

    With soft targets ``T``: ``BCE(z, T) = softplus(z) - z T`` and its derivative is ``sigmoid(z) - T``.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets, weights)
        total = torch.zeros((), device=logits.device)
        for rows in _row_chunks(logits):
            z, t = logits[rows].float(), targets[rows]
            contraction = torch.einsum("pchw,phw->pc", z, t)
            entropy = F.softplus(z).sum(dim=(2, 3)) - contraction
            total = total + (entropy * weights[rows]).sum() / t[0].numel()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, weights = ctx.saved_tensors
        result = torch.empty_like(logits)
        scale = grad * weights / max(targets.shape[1] * targets.shape[2], 1)
        for rows in _row_chunks(logits):
            slope = logits[rows].float().sigmoid().sub_(targets[rows, None])
            result[rows] = slope.mul_(scale[rows, :, None, None]).to(result.dtype)
        return result, None, None


def _row_chunks(logits: Tensor) -> list[slice]:
    per_row = max(logits[:1].numel(), 1)
    step = max(CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS["cuda"]) // per_row, 1)
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def mask_transfer_loss(logits: Tensor, targets: Tensor, weights: Tensor, top_k: int | None = None) -> Tensor:
    """Return ``sum_n sum_i w_{n,i} mean_{h,w} BCE(z_{n,i}, T_n)``.

    Args:
        logits: ``(P, K, h, w)`` float of any precision; computed in float32.
        targets: ``(P, h, w)`` float in [0, 1].
        weights: ``(P, K)`` float, constant.
        top_k: At most this many weights of a row are not 0: only these classes are computed.

    Returns:
        Scalar float32.
    """
    if top_k is not None and top_k < weights.shape[1]:
        weights, classes = weights.topk(top_k, dim=1)
        logits = logits.gather(1, classes[:, :, None, None].expand(-1, -1, *logits.shape[2:]))
    loss: Tensor = _MaskTransfer.apply(logits, targets.float(), weights.float())
    return loss


def classes_of(choice: str, frequency: Sequence[str], instance_counts: Sequence[int]) -> list[bool]:
    """Return which classes a choice names.

    Args:
        choice: Letters of frequency groups, or a condition on training instances such as ``>=100`` or ``<30``.
        frequency: ``r``, ``c`` or ``f`` per class.
        instance_counts: Training instances per class.

    Raises:
        UserError: The choice is neither.
    """
    if choice and set(choice) <= set("rcf"):
        return [group in choice for group in frequency]
    found = re.fullmatch(r"(>=|<=|>|<)\s*(\d+)", choice)
    if found is None:
        raise UserError(
            "unknown choice of classes",
            where="crat: source or target",
            got=repr(choice),
            allowed="letters of r, c, f, or a condition on training instances such as '>=100'",
        )
    compare = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}[found[1]]
    return [compare(n, int(found[2])) for n in instance_counts]


def class_affinity(energy: Tensor) -> Tensor:
    """Return the cosine between the statistics of every two classes.

    Args:
        energy: ``(K, c, d)`` float, the statistic of a trained detector (``box_bank.energy``).

    Returns:
        ``(K, K)`` float32, symmetric; rows and columns of unseen classes are 0.
    """
    rows = F.normalize(energy.float().flatten(1), dim=1, eps=NORM_FLOOR)
    return rows @ rows.T


def nearest_sources(affinity: Tensor, classes: Tensor, sources: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the classes most similar to each of ``classes``.

    Args:
        affinity: ``(K, K)`` float, see :func:`class_affinity`.
        classes: ``(M,)`` int64, e.g. the rare classes.
        sources: ``(K,)`` bool, classes that may be named, e.g. the frequent ones.
        count: How many per class; at most the number of sources.

    Returns:
        Labels ``(M, count)`` int64 and cosines ``(M, count)`` float, best first. A class never names itself: where
        nothing else is left the label is -1 and the cosine 0.
    """
    blocked = F.one_hot(classes, len(affinity)).bool() | ~sources
    values, labels = affinity[classes].masked_fill(blocked, -torch.inf).topk(min(count, int(sources.sum())), dim=1)
    missing = values.isinf()
    return labels.masked_fill(missing, -1), values.masked_fill(missing, 0.0)


def effective_sources(weights: Tensor) -> Tensor:
    """Return the number of classes each row of weights really uses, the exponential of its entropy.

    Args:
        weights: ``(P, K)`` float, rows of :func:`transfer_weights`.

    Returns:
        ``(P,)`` float in ``[1, K]`` for rows that sum to 1.
    """
    effective: Tensor = torch.special.entr(weights).sum(dim=1).exp()
    return effective

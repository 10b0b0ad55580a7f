"""The equations of LOCE, exploring classification equilibrium (ICCV 2021, fcjian/LOCE).

The mean score ``m_c`` of a class is a running mean of what its own RoIs score. The equilibrium loss is softmax cross
entropy of ``z + ln m``, and classes with low mean scores are drawn more often from a memory of features.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COPIES = 16
"""Jittered boxes per object, one for each combination of signs of its four edges."""
SMALLEST_SCORE = 1e-7


def shifted_logits(logits: Tensor, mean_score: Tensor) -> Tensor:
    """Return ``z + ln m``, ``(N, C)`` float32, whose softmax cross entropy is the equilibrium loss.

    Args:
        logits: ``(N, C)`` float.
        mean_score: ``(C,)`` float32, ``m``.
    """
    return logits.float() + mean_score.clamp(min=torch.finfo(torch.float32).tiny).log()


def object_scores(scores: Tensor, labels: Tensor, objects: Tensor, num_objects: int) -> Tensor:
    """Return sums and numbers of the entries of each class, ``(2, K)`` float32: one entry per object with RoIs.

    Args:
        scores: ``(N, K + 1)`` float32, softmax over all classes.
        labels: ``(N,)`` int64, background ``K``.
        objects: ``(N,)`` int64, which object a RoI belongs to; -1 for background.
        num_objects: Objects of the batch.
    """
    own = torch.where(objects >= 0, objects, num_objects)
    value = scores.gather(1, labels[:, None])[:, 0]
    sums = value.new_zeros(num_objects + 1).index_add_(0, own, value)
    rows = value.new_zeros(num_objects + 1).index_add_(0, own, torch.ones_like(value))
    of_class = labels.new_full((num_objects + 1,), scores.shape[1] - 1).index_copy_(0, own, labels)
    return _class_sums(sums / rows.clamp(min=1), rows > 0, of_class, scores.shape[1])


def memory_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Return sums and numbers of the entries of each class, ``(2, K)`` float32: one entry per class of the memory rows.

    Args:
        scores: ``(S, K + 1)`` float32, softmax over all classes.
        labels: ``(S,)`` int64.
    """
    classes = scores.shape[1]
    value = scores.gather(1, labels[:, None])[:, 0]
    sums = value.new_zeros(classes).index_add_(0, labels, value)
    rows = value.new_zeros(classes).index_add_(0, labels, torch.ones_like(value))
    return _class_sums(sums / rows.clamp(min=1), rows > 0, torch.arange(classes, device=labels.device), classes)


def _class_sums(means: Tensor, present: Tensor, of_class: Tensor, classes: int) -> Tensor:
    """Return sums and numbers by class of the entries that are present, ``(2, K)``, without the last class."""
    both = torch.stack([means * present, present.to(means)])
    return both.new_zeros(2, classes).index_add_(1, of_class, both)[:, :-1]


def updated_mean_score(mean_score: Tensor, entries: Tensor, alpha: float, background: float) -> Tensor:
    """Return the next mean scores ``(K + 1,)``: ``a^k m_c + (1 - a^k) mean`` of a class with ``k`` entries.

    Args:
        mean_score: ``(K + 1,)`` float32.
        entries: ``(2, K)`` float32, their sums and numbers over all processes.
        alpha: ``a``.
        background: What the background's is set to.
    """
    sums, count = entries
    kept = alpha**count
    return F.pad(kept * mean_score[:-1] + (1 - kept) * sums / count.clamp(min=1), (0, 1), value=background)


def class_probability(mean_score: Tensor) -> Tensor:
    """Return how likely each class is drawn, ``(K,)`` float32, in inverse proportion to its mean score.

    Args:
        mean_score: ``(K,)`` float32 of the foreground classes.
    """
    inverse = 1 / (mean_score + SMALLEST_SCORE)
    return inverse / inverse.sum()


def drawn_classes(mean_score: Tensor, uniform: Tensor) -> Tensor:
    """Return the classes of uniform numbers, ascending, ``(S,)`` int64; ``K`` where rounding leaves a number over.

    Args:
        mean_score: ``(K,)`` float32 of the foreground classes.
        uniform: ``(S,)`` float64 in [0, 1).
    """
    # One float32 addition after another, as in the repository; torch adds in double precision or in parallel.
    reached = np.cumsum(class_probability(mean_score).cpu().numpy(), dtype=np.float32).astype(np.float64)
    return torch.searchsorted(torch.from_numpy(reached).to(uniform.device), uniform.sort().values)


def jittered_boxes(boxes: Tensor, uniform: Tensor, size: tuple[int, int]) -> Tensor:
    """Return 16 boxes per box ``(16 n, 4)``, box after box; each edge is moved by up to a sixth of the box's side.

    Args:
        boxes: ``(n, 4)`` float xyxy, pixels.
        uniform: ``(4, 16)`` float in [0, 1), shared by the boxes of an image.
        size: Height and width of the image, pixels.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = torch.stack([width, height, width, height], dim=1)
    moved = boxes[:, None] + side[:, None] / 6 * (jitter_signs(boxes.device) * uniform).t()
    limit = torch.tensor([size[1], size[0]] * 2, device=boxes.device) - 1
    return torch.minimum(moved.clamp(min=0), limit).reshape(-1, 4)


def jitter_signs(device: torch.device | str = "cpu") -> Tensor:
    """Return the signs of the four edges, ``(4, 16)`` float32: blocks of 8, 4, 2 and 1 of -1, then +1."""
    place = torch.arange(COPIES, device=device)
    blocks = torch.tensor([8, 4, 2, 1], device=device)[:, None]
    return (place // blocks % 2 * 2 - 1).float()


def ring_slots(labels: Tensor, written: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where rows enter the ring of their class.

    Args:
        labels: ``(M,)`` int64 classes of the rows, in their order.
        written: ``(K,)`` int64, rows ever written to each ring.
        size: Places of a ring; of one call a class takes its first ``size`` rows.

    Returns:
        The rows that enter ``(m,)`` int64, their places ``(m,)`` int64, and ``written`` afterwards ``(K,)``.
    """
    order = labels.argsort(stable=True)
    ranked = labels[order]
    rank = torch.arange(len(order), device=labels.device) - torch.searchsorted(ranked, ranked)
    kept = rank < size
    rows = order[kept]
    places = (written[labels[rows]] + rank[kept]) % size
    return rows, places, written + torch.bincount(labels, minlength=len(written)).clamp(max=size)

"""The equations of the adaptive class suppression loss, ACSL (CVPR 2021, CASIA-IVA-Lab/ACSL).

With the scores ``p = sigmoid(z)`` of all ``K + 1`` channels, the background a class of its own,
``L = (1 / N) sum_n sum_c w_nc BCE(z_nc, y_nc)``. A foreground RoI trains its own class and those whose score reaches a
threshold. A background RoI trains the background and the frequent classes; common and rare classes learn from a
tenth and a hundredth of these RoIs, drawn anew in every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.frequency import FREQUENCY_LIMITS, frequency_groups
from ltpipe.methods.sigmoid_loss import one_hot

ORDER = "rcf"


def class_groups(
    image_counts: Sequence[int], class_frequency: Sequence[str] | None, limits: Sequence[int] | None
) -> Tensor:
    """Return 0 for rare, 1 for common and 2 for frequent classes, ``(K,)`` int64.

    Args:
        image_counts: Training images per class.
        class_frequency: ``r``, ``c`` or ``f`` per class as the data say, or None.
        limits: Most images of a rare and of a common class, which replace what the data say; None: LVIS's.

    Raises:
        UserError: The limits do not ascend.
    """
    if limits is not None and (len(limits) != 2 or limits[0] >= limits[1]):
        raise UserError(
            "bad limits of the groups", where="limits", got=list(limits), allowed="two ascending numbers of images"
        )
    if limits is not None or class_frequency is None:
        class_frequency = frequency_groups(image_counts, FREQUENCY_LIMITS if limits is None else limits)
    return torch.tensor([ORDER.index(letter) for letter in class_frequency], dtype=torch.int64)


def drawn_rows(background: Tensor, share: float, noise: Tensor) -> Tensor:
    """Return ``floor(share n)`` of the ``n`` background RoIs, ``(N,)`` bool, drawn without replacement.

    Args:
        background: ``(N,)`` bool.
        share: Part to draw.
        noise: ``(N,)`` float, uniform in [0, 1).
    """
    rank = torch.where(background, noise, 2.0).argsort().argsort()
    return background & (rank < (background.sum(dtype=torch.float64) * share).floor())


def acsl_weights(scores: Tensor, labels: Tensor, groups: Tensor, threshold: float, drawn: Tensor) -> Tensor:
    """Return the weights ``w``, ``(N, K + 1)`` bool.

    Args:
        scores: ``(N, K + 1)`` float32 in [0, 1], background last.
        labels: ``(N,)`` int64, background ``K``.
        groups: ``(K,)`` int64, 0 rare, 1 common, 2 frequent.
        threshold: Score from which a class is suppressed by foreground RoIs of others.
        drawn: ``(2, N)`` bool, background RoIs from which rare and common classes learn.
    """
    num_classes = len(groups)
    own = one_hot(labels, num_classes, num_classes + 1).bool()
    background = labels == num_classes
    learn = torch.stack([*drawn, background])[groups].t()
    foreground = own | (scores >= threshold)
    return torch.where(background[:, None], F.pad(learn, (0, 1), value=True), foreground)


def acsl_rows(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the loss of every RoI, ``(N,)`` float32.

    Args:
        logits: ``(N, K + 1)`` float32.
        labels: ``(N,)`` int64, background ``K``.
        weights: ``(N, K + 1)`` bool.
    """
    target = one_hot(labels, logits.shape[1] - 1, logits.shape[1])
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weights).sum(dim=1)

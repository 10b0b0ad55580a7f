"""Classification losses by class, which FASA compares from one adaptation pass to the next (arXiv 2102.12867).

With ``l_i`` the weighted loss of RoI ``i`` and ``y_i`` its label, background included: ``S_c = sum_{y_i = c} l_i``,
``T_c = #{y_i = c}``, and the class loss is ``L_c = S_c / sum_j T_j``. Works around any classification loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltpipe.methods.head_parts import BoxBatch, HeadPart
from ltpipe.methods.reductions import all_reduce_sum

SCORE_FLOOR = 1e-12


def row_losses(loss: Any, cls_score: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Classification loss of every RoI.

    Losses that cannot give one value per row (several terms, or sums over the batch) are represented by the negative
    log score of the true label, which is the same thing for softmax.

    Args:
        loss: Classification loss of the head (mmdet's protocol).
        cls_score: ``(N, C')`` classifier output.
        labels: ``(N,)`` int64, background last.
        weights: ``(N,)`` float or None.

    Returns:
        ``(N,)`` float32, with ``weights`` and the loss weight in it.
    """
    if not len(labels):
        return cls_score.new_zeros(0, dtype=torch.float32)
    rows = loss(cls_score, labels, weights, reduction_override="none")
    if isinstance(rows, Tensor) and rows.shape == labels.shape:
        return rows.float()
    scores = loss.get_activation(cls_score) if getattr(loss, "custom_activation", False) else cls_score.softmax(dim=-1)
    rows = -scores.float().gather(1, labels[:, None])[:, 0].clamp(min=SCORE_FLOOR).log()
    return float(getattr(loss, "loss_weight", 1.0)) * (rows if weights is None else rows * weights)


class PerClassLossMeter(HeadPart):
    """Sums the classification losses of RoIs by label: what stands in for FASA during its adaptation pass.

    Args:
        num_classes: Foreground classes; the background label is ``num_classes``.
        device: Where to sum.
    """

    def __init__(self, num_classes: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.totals = torch.zeros(num_classes + 1, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.totals)
        self.paused = False

    @torch.no_grad()
    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        """Add the RoIs of a batch; return nothing."""
        self.add(row_losses(head.loss_cls, batch.cls_score, batch.labels, batch.label_weights), batch.labels)
        return {}

    def add(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Add one batch, unless ``paused``.

        Args:
            rows: ``(N,)`` losses with label weights applied.
            labels: ``(N,)`` int64 in ``0..num_classes``; every row counts once whatever its weight.

        Returns:
            The mean over the rows, for the log (0 for an empty batch).
        """
        rows = rows.detach().to(self.totals)
        if not self.paused:
            self.totals.index_add_(0, labels, rows)
            self.counts += torch.bincount(labels, minlength=len(self.counts))
        return rows.sum() / max(len(rows), 1)

    def reduced(self) -> tuple[Tensor, Tensor]:
        """Sums and numbers of RoIs over all processes, both ``(num_classes + 1,)`` float64."""
        return all_reduce_sum(self.totals), all_reduce_sum(self.counts)


def class_losses(
    totals: Tensor, counts: Tensor, previous: Tensor, normaliser: str = "class_sum"
) -> tuple[Tensor, Tensor]:
    """Normalised class losses of a pass, and what to compare them with.

    Args:
        totals: ``(C + 1,)`` sums of losses by label, over all processes, background last.
        counts: ``(C + 1,)`` number of RoIs by label; their sum must be positive.
        previous: ``(C + 1,)`` result of the previous pass, zeros before the first one.
        normaliser: ``class_sum``: divided by the number of all RoIs. ``class_mean``: by the RoIs of the class; a class
            without any keeps its previous value.

    Returns:
        New losses and the reference, both ``(C + 1,)`` float32. Without a reference yet it equals the new losses.
    """
    totals, counts = totals.double(), counts.double()
    if normaliser == "class_sum":
        current = (totals / counts.sum()).float()
        reference = current if float(previous.sum()) == 0 else previous
        return current, reference
    current = torch.where(counts > 0, (totals / counts.clamp(min=1)).float(), previous)
    return current, torch.where(previous == 0, current, previous)

"""Equalized focal loss, EFL, and its quality variant EQFL (CVPR 2022, ModelTC/United-Perception).

A focal loss whose focusing parameter grows for classes with few positives; the equations are in
:mod:`ltpipe.methods.efl.functions`. With ``A`` the positives, ``L = (1 / A) sum_n sum_c l_nc``; afterwards
``P_c += sum_{y = 1} |dL / dz_c|``, ``Q_c += sum_{y = 0} |dL / dz_c|``, summed over processes,
``R = min(1, P / (Q + 1e-10))``. Acts as ``loss_cls`` with ``K`` sigmoid channels. Needs nothing from the data.

Made for one-stage detectors: the loss of a RetinaNet, and in a config of mmdet (``custom_imports`` of
``ltpipe.registry``) the ``loss_cls`` of any head with sigmoid scores, ``dict(type="ltpipe.EFLLoss",
num_classes=K, levels=5, average="avg_factor")``. In the box head of a two-stage detector they are our own variant.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.methods.efl.functions import efl_terms, eqfl_terms
from ltpipe.methods.reductions import all_reduce_sum, world_size
from ltpipe.methods.sigmoid_loss import Reduction, SigmoidLoss, one_hot
from ltpipe.registry import method


@method("loss", "efl")
class EFLLoss(SigmoidLoss):
    """EFL; scores at test time are ``sigmoid(z)`` with a background column of 0.

    The accumulated gradients are those of the whole objective, the mean over processes. A class without positives so
    far has ``R = 0`` after the first step, which nearly switches its negatives off.

    Args:
        num_classes: Foreground classes ``K``.
        gamma: Focusing parameter of a balanced class (repository: 2.0).
        scale: How much it grows for a class without positive gradients, ``s`` (repository: 8.0).
        alpha: Weight of positives, one minus it that of negatives; below 0: all weigh 1 (repository: 0.25).
        loss_weight: Factor of the loss (repository: 1.0).
        prior_prob: Initial score of every class; the head sets the classifier's bias by it (repository: 0.001).
        average: ``A``: the ``positives`` of all processes over their number, or the ``avg_factor`` that the head gives,
            which in mmdet's one-stage heads is the same over all levels.
        levels: Calls per training step: pyramid levels of a one-stage head, each of which calls the loss by itself.
        use_sigmoid: Read from the config by mmdet's one-stage heads.

    Raises:
        UserError: A parameter is out of range, or several levels are to count positives by themselves.
    """

    background = "none"
    weighted = True
    restarts_per_phase = True
    class_rows: ClassVar[dict[str, int]] = {"pos_grad": 0, "neg_grad": 0, "pos_neg": 0}

    pos_grad: Tensor
    neg_grad: Tensor
    pos_neg: Tensor

    def __init__(
        self,
        num_classes: int,
        gamma: float = 2.0,
        scale: float = 8.0,
        alpha: float = 0.25,
        loss_weight: float = 1.0,
        prior_prob: float = 0.001,
        average: Literal["positives", "avg_factor"] = "positives",
        levels: int = 1,
        use_sigmoid: Literal[True] = True,
    ) -> None:
        super().__init__(num_classes, loss_weight)
        if gamma <= 0 or scale < 0 or levels < 1 or (levels > 1 and average == "positives"):
            raise UserError(
                "bad option of an equalized focal loss",
                where="loss_cls",
                got=f"gamma {gamma}, scale {scale}, levels {levels}, average {average}",
                allowed="gamma above 0, scale 0 or more, levels 1 or more; average: avg_factor with several levels",
            )
        self.gamma, self.scale, self.alpha, self.prior_prob = gamma, scale, alpha, prior_prob
        self.average, self.levels, self.use_sigmoid = average, levels, use_sigmoid
        # The names are those of the repository's checkpoints.
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.ones(num_classes))
        self._collected: list[Tensor] = []

    @property
    def focus(self) -> Tensor:
        """The focusing parameter of every class, ``(K,)`` float32."""
        return self.gamma + self.scale * (1 - self.pos_neg)

    def terms(self, logits: Tensor, target: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms and the absolute values of their gradients, both ``(N, K)`` float32."""
        return efl_terms(logits, positive, self.focus, self.gamma, self.alpha)

    def forward(
        self,
        cls_score: Tensor,
        label: Any,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: Reduction | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss, computed in float32; in training mode, collect the gradients.

        Args:
            cls_score: ``(N, K)`` float logits.
            label: ``(N,)`` int64, background ``K``; or with the quality of positives, ``(N,)`` float in [0, 1], behind
                it, which EFL does not read.
            weight: ``(N,)`` float label weights, 0 for what is ignored, or None for 1.
            avg_factor: Divisor of the sum if ``average`` says so.
            reduction_override: ``none`` (a value per RoI, nothing is collected), ``mean`` (default) or ``sum``.
            **kwargs: Not used.
        """
        labels, quality = label if isinstance(label, tuple | list) else (label, None)
        with torch.autocast(cls_score.device.type, enabled=False):
            positive = one_hot(labels, self.num_classes, self.num_classes)
            target = positive if quality is None else positive * quality.float()[:, None]
            terms, slopes = self.terms(cls_score.float(), target, positive)
            if weight is not None:
                terms, slopes = terms * weight[:, None], slopes * weight[:, None]
            factor: Tensor | float = self.loss_weight
            if (reduction_override or "mean") == "mean":
                factor = self.loss_weight / self._divisor(labels, weight, avg_factor)
                if self.training:
                    self._collect(slopes * factor, positive)
            losses = terms.sum(dim=1) * factor
        return losses if reduction_override == "none" else losses.sum()

    def _divisor(self, labels: Tensor, weight: Tensor | None, avg_factor: float | None) -> Tensor | float:
        if self.average == "avg_factor" and avg_factor is not None:
            return avg_factor
        found = labels < self.num_classes
        count = (found if weight is None else found & (weight > 0)).sum().float()
        return all_reduce_sum(count).clamp(min=1) / world_size()

    @torch.no_grad()
    def _collect(self, slopes: Tensor, positive: Tensor) -> None:
        """Add the absolute gradients ``(N, K)`` of a level to the accumulators, after the last level of a step."""
        own = (slopes * positive).sum(dim=0)
        self._collected.append(torch.stack([own, slopes.sum(dim=0) - own]))
        if len(self._collected) < self.levels:
            return
        sums = all_reduce_sum(torch.stack(self._collected).sum(dim=0)) / world_size()
        self._collected.clear()
        self.pos_grad += sums[0]
        self.neg_grad += sums[1]
        self.pos_neg.copy_((self.pos_grad / (self.neg_grad + 1e-10)).clamp(0, 1))


@method("loss", "eqfl")
class EQFLLoss(EFLLoss):
    """EQFL; positives aim at their quality, e.g. the overlap with their object, as far as the head hands it over.

    Args:
        num_classes: Foreground classes ``K``.
    """

    def __init__(
        self,
        num_classes: int,
        gamma: float = 2.0,
        scale: float = 8.0,
        loss_weight: float = 1.0,
        prior_prob: float = 0.001,
        average: Literal["positives", "avg_factor"] = "positives",
        levels: int = 1,
        use_sigmoid: Literal[True] = True,
    ) -> None:
        super().__init__(num_classes, gamma, scale, -1.0, loss_weight, prior_prob, average, levels, use_sigmoid)

    def terms(self, logits: Tensor, target: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms and the absolute values of their gradients, both ``(N, K)`` float32."""
        return eqfl_terms(logits, target, self.focus, self.gamma)

"""Mask heads with call points for parts."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.utils import InstanceList
from torch import Tensor, nn

from ltpipe.methods.class_rows import MASK_HEAD
from ltpipe.methods.head_parts import MaskBatch
from ltpipe.methods.reductions import LossAverage, averaged


class MaskCallPoints(FCNMaskHead):
    """What our RoI heads add to their mask heads.

    Attributes:
        parts: Parts that this head calls, in this order; a plain list, since the RoI head owns them.
        loss_average: What the losses are averaged over; see :func:`~ltpipe.methods.reductions.averaged`.
        seen: With parts, input of the mask predictor in the last forward pass; None in heads that make their filters.
        kept: Of the positives of this step, bool, those whose object has a mask; None: all.
    """

    class_rows = MASK_HEAD

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: list[Any] = []
        self.loss_average: LossAverage = "process"
        self.seen: Tensor | None = None
        self.kept: Tensor | None = None
        if self.conv_logits is not None:
            self.conv_logits.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if self.parts:
            self.seen = inputs[0]

    def loss_and_target(
        self,
        mask_preds: Tensor,
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
        rcnn_train_cfg: Any,
    ) -> dict[str, Any]:
        """As mmdet's, with the parts called after the ordinary loss."""
        found = super().loss_and_target(mask_preds, sampling_results, batch_gt_instances, rcnn_train_cfg)
        losses = averaged(found["loss_mask"], len(mask_preds), self.loss_average)
        if self.parts:
            batch = MaskBatch(
                features=self.seen,
                mask_preds=mask_preds,
                targets=found["mask_targets"],
                labels=torch.cat([res.pos_gt_labels for res in sampling_results]),
                kept=self.kept,
                losses=losses,
            )
            for part in self.parts:
                losses.update(part.mask_losses(self, batch))
        return {**found, "loss_mask": losses}

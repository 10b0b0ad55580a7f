"""Cascade and hybrid task cascade RoI heads of mmdet with call points in every stage.

State-dict keys are those of mmdet's ``CascadeRoIHead`` and ``HybridTaskCascadeRoIHead``, so plain mmdet checkpoints
load as they are. Parts have a state of their own in every stage, ``parts.<i>.<stage>.*``. Stage k learns on RoIs drawn
by its own sampler from those of stage k - 1 after their refinement.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import InstanceList
from torch import Tensor

from ltpipe.engine.call_points import CallPoints, class_logits
from ltpipe.registry import MODELS


class _StageCallPoints(CallPoints):
    """Call points of the RoI heads that have a list of stages."""

    num_stages: int
    stage_loss_weights: list[float]

    @property
    def bbox_heads(self) -> list[Any]:
        """The box head of every stage."""
        return list(self.bbox_head)

    @property
    def stage_weights(self) -> list[float]:
        """The loss weight of every stage."""
        return list(self.stage_loss_weights)

    def pooled(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> Tensor:
        """Return the features ``(N, c, h, w)`` that the box head of a stage reads of RoIs ``(N, 5)``."""
        extractor = self.bbox_roi_extractor[stage]
        return extractor(x[: extractor.num_inputs], rois)

    def mask_pooled(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> Tensor:
        """As :meth:`pooled`, for the mask head of a stage."""
        extractor = self.mask_roi_extractor[stage]
        return extractor(x[: extractor.num_inputs], rois)

    def _bbox_forward(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> dict[str, Tensor]:
        return self.box_outputs(stage, x, rois, **context)

    def bbox_loss(
        self, stage: int, x: tuple[Tensor, ...], sampling_results: list[SamplingResult], **context: Any
    ) -> dict[str, Any]:
        """As mmdet's, with the stage's parts called after its ordinary losses."""
        rois = bbox2roi([res.priors for res in sampling_results])
        results = self._bbox_forward(stage, x, rois, **context)
        losses, targets = self.box_losses(stage, results, rois, sampling_results, self.train_cfg[stage])
        return {**results, "rois": rois, "loss_bbox": losses, "bbox_targets": targets}

    def mask_loss(
        self,
        stage: int,
        x: tuple[Tensor, ...],
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
        **context: Any,
    ) -> dict[str, Any]:
        """As mmdet's, with the stage's parts called after its ordinary loss."""

        def forward(rois: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return self._mask_forward(stage, x, rois, labels, **context)

        head, cfg = self.mask_head[stage], self.train_cfg[stage]
        return self.mask_losses(stage, head, forward, sampling_results, batch_gt_instances, cfg)

    def _mask_forward(
        self, stage: int, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor | None = None, **context: Any
    ) -> dict[str, Tensor]:
        feats = self.mask_pooled(stage, x, rois, **context)
        logits = class_logits(self.mask_head[stage], self.bbox_head[stage], feats, labels)
        return {"mask_preds": logits, "mask_feats": feats}

    def mask_logits(self, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor, **context: Any) -> list[Tensor]:
        """Return the mask logits of every stage for detected boxes ``(D, 5)`` and their labels ``(D,)``."""
        return [self._mask_forward(stage, x, rois, labels, **context)["mask_preds"] for stage in range(self.num_stages)]


@MODELS.register_module()
class LTCascadeRoIHead(_StageCallPoints, CascadeRoIHead):
    """Cascade whose stages call their parts during training, and its calibrator at test time.

    Args:
        parts: See :class:`~ltpipe.engine.call_points.CallPoints`.
        calibrator: See there; its ``fuse`` gets the pooled features of every stage.
        loss_average: See there.
        **kwargs: Passed to mmdet's ``CascadeRoIHead``.
    """


@MODELS.register_module()
class LTHybridTaskCascadeRoIHead(_StageCallPoints, HybridTaskCascadeRoIHead):
    """Hybrid task cascade (arXiv 1901.07518) with the same call points; mask heads are mmdet's ``HTCMaskHead``.

    At test time the masks of all stages are averaged, as in the paper; mmdet 3 takes those of the last stage.

    Args:
        parts: See :class:`~ltpipe.engine.call_points.CallPoints`.
        calibrator: See there; its ``fuse`` gets the pooled features of every stage, the semantic ones added.
        loss_average: See there.
        **kwargs: Passed to mmdet's ``HybridTaskCascadeRoIHead``.
    """

    def context(self, x: tuple[Tensor, ...]) -> dict[str, Any]:
        """Return the semantic feature map, if there is a semantic branch."""
        return {"semantic_feat": self.semantic_head(x)[1]} if self.with_semantic else {}

    def pooled(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> Tensor:
        """Return the features ``(N, c, h, w)`` of RoIs ``(N, 5)``, the semantic ones added."""
        return self._with_semantic("bbox", super().pooled(stage, x, rois), rois, **context)

    def mask_pooled(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> Tensor:
        """As :meth:`pooled`, for the mask head of a stage."""
        return self._with_semantic("mask", super().mask_pooled(stage, x, rois), rois, **context)

    def _with_semantic(self, branch: str, feats: Tensor, rois: Tensor, semantic_feat: Tensor | None = None) -> Tensor:
        if semantic_feat is None or branch not in self.semantic_fusion:
            return feats
        semantic = self.semantic_roi_extractor([semantic_feat], rois)
        return feats + F.adaptive_avg_pool2d(semantic, (feats.shape[-2], feats.shape[-1]))

    def _mask_forward(
        self, stage: int, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor | None = None, **context: Any
    ) -> dict[str, Tensor]:
        feats = self.mask_pooled(stage, x, rois, **context)
        return {"mask_preds": self._flow(feats, stage)[-1], "mask_feats": feats}

    def mask_logits(self, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor, **context: Any) -> list[Tensor]:
        """Return the mask logits of every stage for detected boxes ``(D, 5)``, pooled once for the last stage."""
        return self._flow(self.mask_pooled(self.num_stages - 1, x, rois, **context), self.num_stages - 1, every=True)

    def _flow(self, feats: Tensor, stage: int, every: bool = False) -> list[Tensor]:
        """Return the logits of a stage, or of every stage up to it, each fed with the features of the one before."""
        logits: list[Tensor] = []
        previous: Tensor | None = None
        for index, head in enumerate(self.mask_head[: stage + 1]):
            if every or index == stage:
                found, following = head(feats, previous)
                logits.append(found)
            elif self.mask_info_flow:
                following = head(feats, previous, return_logits=False)
            else:
                continue
            previous = following if self.mask_info_flow else None
        return logits

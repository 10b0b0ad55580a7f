"""Box and RoI heads of mmdet with call points: exchangeable classifiers, parts, and fused scores at test time.

State-dict keys are those of mmdet's ``Shared2FCBBoxHead`` and ``StandardRoIHead``; parts add ``parts.<i>.*`` and a
calibrated classifier adds ``calibrator.*``, so a plain mmdet checkpoint loads as it is. Cascades are in
:mod:`ltpipe.engine.cascade`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import Shared2FCBBoxHead, StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.bbox import bbox2roi, get_box_tensor, scale_boxes
from mmdet.utils import InstanceList
from mmengine.model import bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.engine.call_points import CallPoints, class_logits
from ltpipe.registry import MODELS


@MODELS.register_module()
class LTBBoxHead(Shared2FCBBoxHead):
    """Two shared fully connected layers, then a classifier and a box regressor.

    A classifier class with ``rectify_input = False`` (LST's cosine classifier) reads the second layer before its ReLU;
    the regressor always reads it after.
    """

    def init_weights(self) -> None:
        """Initialise as mmdet; sigmoid losses with a ``prior_prob`` get the bias that makes it the first score."""
        super().init_weights()
        prior = getattr(self.loss_cls, "prior_prob", None)
        if prior is not None and getattr(self.fc_cls, "bias", None) is not None:
            nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(prior))

    def shared_features(self, bbox_feats: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of the classifier and of the regressor.

        Args:
            bbox_feats: ``(N, c, h, w)`` float, pooled RoI features.

        Returns:
            Two tensors ``(N, fc_out_channels)``.
        """
        x = F.relu(self.shared_fcs[0](bbox_feats.flatten(1)))
        x = self.shared_fcs[1](x)
        rectified = F.relu(x)
        return (rectified if getattr(self.fc_cls, "rectify_input", True) else x), rectified

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores ``(N, C)`` and box deltas ``(N, 4K)`` (``(N, 4)`` when class-agnostic)."""
        for_cls, for_reg = self.shared_features(x)
        return self.fc_cls(for_cls), self.fc_reg(for_reg)

    def probabilities(self, cls_score: Tensor) -> Tensor:
        """Return the per-class scores ``(N, K + 1)`` of classifier outputs, background last."""
        if self.custom_activation:
            return self.loss_cls.get_activation(cls_score)
        return F.softmax(cls_score, dim=-1)

    def detections(
        self, rois: Tensor, scores: Tensor, deltas: Tensor, meta: dict[str, Any], cfg: Any, rescale: bool
    ) -> InstanceData:
        """Turn the scores of one image into detections.

        Args:
            rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input.
            scores: ``(N, K + 1)`` float probabilities, background last.
            deltas: ``(N, 4K)`` or ``(N, 4)`` float box deltas.
            meta: ``img_shape`` and ``scale_factor`` of the image.
            cfg: mmdet's ``test_cfg.rcnn``: ``score_thr``, ``nms``, ``max_per_img``.
            rescale: Return boxes in pixels of the original image.

        Returns:
            ``bboxes`` ``(D, 4)`` xyxy, ``scores`` ``(D,)`` and ``labels`` ``(D,)``, best first.
        """
        if not len(rois):
            none = rois.new_zeros(0)
            return InstanceData(bboxes=none.reshape(0, 4), scores=none, labels=none.long())
        repeats = 1 if self.reg_class_agnostic else self.num_classes
        boxes = self.bbox_coder.decode(
            rois[:, 1:].repeat_interleave(repeats, dim=0), deltas.reshape(-1, 4), max_shape=meta["img_shape"]
        )
        if rescale:
            boxes = scale_boxes(boxes, [1 / s for s in meta["scale_factor"]])
        boxes = get_box_tensor(boxes).reshape(len(rois), -1)
        kept, labels = multiclass_nms(boxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img)
        return InstanceData(bboxes=kept[:, :4], scores=kept[:, 4], labels=labels)

    def refined(
        self, rois: Tensor, cls_score: Tensor, deltas: Tensor, counts: list[int], metas: list[dict[str, Any]]
    ) -> Tensor:
        """Return the RoIs ``(N, 5)`` moved by their deltas, class-wise ones by those of the best-scoring class.

        Args:
            rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input.
            cls_score: ``(N, C)`` float classifier outputs.
            deltas: ``(N, 4K)`` or ``(N, 4)`` float.
            counts: RoIs per image.
            metas: ``img_shape`` of every image.
        """
        labels = (self.probabilities(cls_score) if self.custom_activation else cls_score)[:, :-1].argmax(dim=1)
        parts = zip(rois[:, 1:].split(counts), labels.split(counts), deltas.split(counts), metas, strict=True)
        return torch.cat([rois[:, :1], torch.cat([get_box_tensor(self.regress_by_class(*one)) for one in parts])], 1)

    def refine_bboxes(
        self,
        sampling_results: list[SamplingResult],
        bbox_results: dict[str, Any],
        batch_img_metas: list[dict[str, Any]],
    ) -> InstanceList:
        """As mmdet's, but without RoIs there are no boxes instead of None, so that later stages report their losses."""
        refined = super().refine_bboxes(sampling_results, bbox_results, batch_img_metas)
        if refined is None:
            return [InstanceData(bboxes=bbox_results["rois"].new_zeros(0, 4)) for _ in batch_img_metas]
        return refined


@MODELS.register_module()
class LTRoIHead(CallPoints, StandardRoIHead):
    """RoI head of one stage that calls its parts during training and its calibrator at test time.

    Args:
        parts: See :class:`~ltpipe.engine.call_points.CallPoints`.
        calibrator: See there.
        loss_average: See there.
        **kwargs: Passed to mmdet's ``StandardRoIHead``.
    """

    @property
    def bbox_heads(self) -> list[Any]:
        """The box head."""
        return [self.bbox_head]

    @property
    def stage_weights(self) -> list[float]:
        """One."""
        return [1.0]

    def pooled(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> Tensor:
        """Return the features ``(N, c, h, w)`` that the box head reads of RoIs ``(N, 5)``."""
        return self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        return self.box_outputs(0, x, rois)

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list[SamplingResult]) -> dict[str, Any]:
        """As mmdet's, with the parts called after the ordinary losses."""
        rois = bbox2roi([res.priors for res in sampling_results])
        results = self._bbox_forward(x, rois)
        losses, _ = self.box_losses(0, results, rois, sampling_results, self.train_cfg)
        return {**results, "loss_bbox": losses}

    def mask_loss(
        self,
        x: tuple[Tensor, ...],
        sampling_results: list[SamplingResult],
        bbox_feats: Tensor,
        batch_gt_instances: InstanceList,
    ) -> dict[str, Any]:
        """As mmdet's with its own RoI extractor, with the parts called after the ordinary loss."""

        def forward(rois: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return self._mask_forward(x, rois, labels=labels)

        return self.mask_losses(0, self.mask_head, forward, sampling_results, batch_gt_instances, self.train_cfg)

    def _mask_forward(
        self,
        x: tuple[Tensor, ...],
        rois: Tensor | None = None,
        pos_inds: Tensor | None = None,
        bbox_feats: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        feats = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        return {"mask_preds": class_logits(self.mask_head, self.bbox_head, feats, labels), "mask_feats": feats}

    def mask_logits(self, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor, **context: Any) -> list[Tensor]:
        """Return the mask logits of detected boxes ``(D, 5)`` with labels ``(D,)``."""
        return [self._mask_forward(x, rois, labels=labels)["mask_preds"]]

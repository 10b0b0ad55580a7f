"""Box and RoI heads of mmdet with call points: exchangeable classifiers, parts, and fused scores at test time.

State-dict keys are those of mmdet's ``Shared2FCBBoxHead`` and ``StandardRoIHead``; parts add ``parts.<i>.*`` and a
calibrated classifier adds ``calibrator.*``, so a plain mmdet checkpoint loads as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import Shared2FCBBoxHead, StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances
from mmdet.structures.bbox import bbox2roi, get_box_tensor, scale_boxes
from mmdet.utils import InstanceList
from mmengine.model import bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.methods.base import BoxBatch, MaskBatch, batch_share
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


@dataclass(frozen=True, eq=False)
class RoIScores:
    """What the box head says of the proposals of a batch.

    Attributes:
        rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input.
        counts: Proposals per image.
        metas: Metainfo per image.
        bbox_feats: ``(N, c, h, w)`` float, pooled RoI features.
        scores: ``(N, K + 1)`` float probabilities, background last.
        deltas: ``(N, 4K)`` or ``(N, 4)`` float box deltas.
    """

    rois: Tensor
    counts: list[int]
    metas: list[dict[str, Any]]
    bbox_feats: Tensor
    scores: Tensor
    deltas: Tensor


Rescore = Callable[[RoIScores], Iterable[Tensor]]


@MODELS.register_module()
class LTRoIHead(StandardRoIHead):
    """RoI head that calls its parts during training and its calibrator at test time.

    Args:
        parts: Configs of :class:`ltpipe.methods.base.HeadPart` modules, called in this order.
        calibrator: Config of a module whose ``fuse(bbox_feats, scores)`` turns the head's own scores ``(N, K + 1)``
            into the final ones, or None.
        loss_average: What box, mask and distillation losses are averaged over: the items of this ``process``, as in
            mmdet, or those of the whole ``batch``, which makes a training independent of the number of processes.
        **kwargs: Passed to mmdet's ``StandardRoIHead``.
    """

    def __init__(
        self,
        *args: Any,
        parts: list[dict[str, Any]] | None = None,
        calibrator: dict[str, Any] | None = None,
        loss_average: Literal["process", "batch"] = "process",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss_average = loss_average
        self.parts = nn.ModuleList(MODELS.build(part) for part in parts or [])
        self.calibrator = MODELS.build(calibrator) if calibrator is not None else None

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: InstanceList, batch_data_samples: list[Any]
    ) -> dict[str, Tensor]:
        """Return mmdet's RoI losses and those of the parts."""
        losses = super().loss(x, rpn_results_list, batch_data_samples)
        for part in self.parts:
            losses.update(part.image_losses(self, x, batch_data_samples))
        return losses

    def averaged(self, losses: dict[str, Tensor], count: int, device: torch.device) -> dict[str, Tensor]:
        """Return losses that are means over this process's items as means over what ``loss_average`` says.

        Args:
            losses: Scalars by name; those without ``loss`` in their name stay as they are.
            count: Items of this process: RoIs, positives or boxes.
            device: Of the losses.
        """
        if self.loss_average == "process":
            return losses
        share = batch_share(count, device)
        return {name: value * share if "loss" in name else value for name, value in losses.items()}

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        bbox_feats = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        features, for_reg = self.bbox_head.shared_features(bbox_feats)
        return {
            "bbox_feats": bbox_feats,
            "features": features,
            "cls_score": self.bbox_head.fc_cls(features),
            "bbox_pred": self.bbox_head.fc_reg(for_reg),
        }

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list[SamplingResult]) -> dict[str, Any]:
        """As mmdet's, with the parts called after the ordinary losses."""
        rois = bbox2roi([res.priors for res in sampling_results])
        results = self._bbox_forward(x, rois)
        targets = self.bbox_head.get_targets(sampling_results, self.train_cfg)
        losses = self.bbox_head.loss(results["cls_score"], results["bbox_pred"], rois, *targets)
        if not len(rois):
            # mmdet skips an empty batch, but every process must report the same keys and join in the same reductions.
            found = self.bbox_head.loss_cls(results["cls_score"], targets[0], targets[1], avg_factor=1)
            losses.update(found if isinstance(found, dict) else {"loss_cls": found})
        losses = self.averaged(losses, int((targets[1] > 0).sum()), rois.device)
        if self.parts:
            labels, label_weights, bbox_targets, bbox_weights = targets
            batch = BoxBatch(
                features=results["features"],
                cls_score=results["cls_score"],
                labels=labels,
                label_weights=label_weights,
                bbox_feats=results["bbox_feats"],
                rois=rois,
                losses=losses,
                bbox_pred=results["bbox_pred"],
                bbox_targets=bbox_targets,
                bbox_weights=bbox_weights,
            )
            for part in self.parts:
                losses.update(part.box_losses(self.bbox_head, batch))
        return {**results, "loss_bbox": losses}

    def mask_loss(
        self,
        x: tuple[Tensor, ...],
        sampling_results: list[SamplingResult],
        bbox_feats: Tensor,
        batch_gt_instances: InstanceList,
    ) -> dict[str, Any]:
        """As mmdet's with its own RoI extractor, with the parts called after the ordinary loss."""
        rois = bbox2roi([res.pos_priors for res in sampling_results])
        labels = torch.cat([res.pos_gt_labels for res in sampling_results])
        seen: list[Tensor] = []
        predictor = self.mask_head.conv_logits if self.parts else None  # None in heads that make their filters
        hook = predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) if predictor else None
        results = self._mask_forward(x, rois, labels=labels)
        if hook is not None:
            hook.remove()
        found = self.mask_head.loss_and_target(
            results["mask_preds"], sampling_results, batch_gt_instances, self.train_cfg
        )
        losses = self.averaged(found["loss_mask"], len(rois), rois.device)
        if self.parts:
            batch = MaskBatch(
                features=seen[0] if seen else results["mask_feats"],
                mask_preds=results["mask_preds"],
                targets=found["mask_targets"],
                labels=labels,
                losses=losses,
            )
            for part in self.parts:
                losses.update(part.mask_losses(self.mask_head, batch))
        return {**results, "loss_mask": losses}

    def _mask_forward(
        self,
        x: tuple[Tensor, ...],
        rois: Tensor | None = None,
        pos_inds: Tensor | None = None,
        bbox_feats: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        feats = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        if getattr(self.mask_head, "needs_class_weight", False):
            preds = self.mask_head(feats, class_weight=self.bbox_head.fc_cls.weight, labels=labels)
        else:
            preds = self.mask_head(feats)
        return {"mask_preds": preds, "mask_feats": feats}

    def predict_mask(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        results_list: InstanceList,
        rescale: bool = False,
    ) -> InstanceList:
        """Add ``masks`` ``(D, H, W)`` bool to the detections of each image."""
        rois = bbox2roi([res.bboxes for res in results_list])
        if not len(rois):
            return empty_instances(
                batch_img_metas,
                rois.device,
                task_type="mask",
                instance_results=results_list,
                mask_thr_binary=self.test_cfg.mask_thr_binary,
            )
        found = self._mask_forward(x, rois, labels=torch.cat([res.labels for res in results_list]))
        return self.mask_head.predict_by_feat(
            mask_preds=found["mask_preds"].split([len(res) for res in results_list]),
            results_list=results_list,
            batch_img_metas=batch_img_metas,
            rcnn_test_cfg=self.test_cfg,
            rescale=rescale,
        )

    def predict_bbox(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        rpn_results_list: InstanceList,
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> InstanceList:
        """Return the detections of each image: ``bboxes`` xyxy, ``scores``, ``labels``."""
        found = self.score_rois(x, batch_img_metas, rpn_results_list)
        scores = found.scores
        if self.calibrator is not None:
            scores = self.calibrator.fuse(found.bbox_feats, scores)
        return self._detect(found, scores, rcnn_test_cfg, rescale)

    def score_rois(
        self, x: tuple[Tensor, ...], batch_img_metas: list[dict[str, Any]], rpn_results_list: InstanceList
    ) -> RoIScores:
        """Return what the box head says of every proposal, before any calibrator."""
        proposals = [res.bboxes for res in rpn_results_list]
        rois = bbox2roi(proposals)
        found = self._bbox_forward(x, rois)
        return RoIScores(
            rois=rois,
            counts=[len(p) for p in proposals],
            metas=batch_img_metas,
            bbox_feats=found["bbox_feats"],
            scores=self.bbox_head.probabilities(found["cls_score"]),
            deltas=found["bbox_pred"],
        )

    def predict_rescored(
        self, x: tuple[Tensor, ...], rpn_results_list: InstanceList, batch_data_samples: list[Any], rescore: Rescore
    ) -> Iterator[InstanceList]:
        """Yield the detections, masks included, in pixels of the original images for each set of final scores.

        Args:
            x: FPN maps, each ``(B, c, h, w)``.
            rpn_results_list: Proposals of ``B`` images.
            batch_data_samples: Their data samples.
            rescore: Makes the sets of scores; RoIs are pooled and classified once.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        found = self.score_rois(x, metas, rpn_results_list)
        for scores in rescore(found):
            results = self._detect(found, scores, self.test_cfg, rescale=not self.with_mask)
            yield self.predict_mask(x, metas, results, rescale=True) if self.with_mask else results

    def _detect(self, found: RoIScores, scores: Tensor, cfg: Any, rescale: bool) -> InstanceList:
        counts = found.counts
        per_image = zip(
            found.rois.split(counts), scores.split(counts), found.deltas.split(counts), found.metas, strict=True
        )
        return [self.bbox_head.detections(*inputs, cfg, rescale) for inputs in per_image]

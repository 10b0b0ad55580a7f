"""RoI heads of mmdet that own parts and a calibrator and hand them to their heads.

State-dict keys are those of mmdet's RoI heads; parts add ``parts.<i>.*`` (in a cascade ``parts.<i>.<stage>.*``), a
calibrated classifier adds ``calibrator.*``, so a plain mmdet checkpoint loads as it is. What the heads themselves
cannot do happens here: losses of whole images, and masks that need labels or the outputs of several stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, StandardRoIHead
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.engine.heads import as_list, with_call_points
from ltpipe.engine.masked import positives_with_masks
from ltpipe.methods.head_parts import HeadPart
from ltpipe.methods.reductions import LossAverage
from ltpipe.registry import MODELS

Rescore = Callable[[InstanceData], Iterable[Tensor]]


def reads_classifier(mask_head: Any) -> bool:
    """Return whether a mask head makes its filters of the rows of the box head's classifier."""
    return bool(getattr(mask_head, "needs_class_weight", False))


class RoICallPoints:
    """What our RoI heads add to mmdet's.

    A RoI head has one or, in a cascade, several stages; ``bbox_heads`` are their box heads in order.

    Args:
        parts: Configs of :class:`ltpipe.methods.head_parts.HeadPart` modules, called in this order; a list of configs
            in place of one has a part per stage.
        calibrator: Config of a module with ``calibrated_scores``, which makes scores ``(N, K + 1)`` of the pooled
            features ``(N, c, h, w)`` (in a cascade of a list of them, stage after stage), and ``fuse``, which makes the
            final scores of the detector's own and these; or None.
        loss_average: What box, mask and distillation losses are averaged over: the items of this ``process``, as in
            mmdet, or those of the whole ``batch``, which makes a training independent of the number of processes.
        **kwargs: Passed to mmdet's RoI head.
    """

    # What mmdet's RoI heads bring along.
    bbox_head: Any
    mask_head: Any
    shared_head: Any
    semantic_head: Any
    semantic_roi_extractor: Any
    semantic_fusion: Any
    test_cfg: Any
    predict_bbox: Any
    predict_mask: Any
    with_mask: bool
    with_shared_head: bool
    stage_loss_weights: Sequence[float] = (1.0,)

    def __init__(
        self,
        *args: Any,
        parts: Sequence[dict[str, Any] | list[dict[str, Any]]] | None = None,
        calibrator: dict[str, Any] | None = None,
        loss_average: LossAverage = "process",
        **kwargs: Any,
    ) -> None:
        heads = {name: kwargs[name] for name in ("bbox_head", "mask_head") if kwargs.get(name) is not None}
        super().__init__(*args, **{**kwargs, **{name: with_call_points(head) for name, head in heads.items()}})
        self.loss_average = loss_average
        self.parts = nn.ModuleList(
            nn.ModuleList(map(MODELS.build, part)) if isinstance(part, list | tuple) else MODELS.build(part)
            for part in parts or []
        )
        for stage, head in enumerate(self.bbox_heads):
            head.parts, head.loss_average = self.stage_parts(stage), loss_average
            for part in head.parts:
                part.check_head(head)
        self.use_calibrator(MODELS.build(calibrator) if calibrator is not None else None)
        for stage, head in enumerate(self.mask_heads):
            head.parts, head.loss_average = self.stage_parts(stage), loss_average
            if reads_classifier(head):
                head.read_classifier_of(self.bbox_heads[stage])

    @property
    def bbox_heads(self) -> list[Any]:
        """The box head of every stage."""
        return as_list(self.bbox_head)

    @property
    def mask_heads(self) -> list[Any]:
        """The mask head of every stage; none in detectors of boxes alone."""
        return as_list(self.mask_head) if self.with_mask else []

    def stage_parts(self, stage: int) -> list[Any]:
        """Return the parts that a stage calls."""
        return [part[stage] if isinstance(part, nn.ModuleList) else part for part in self.parts]

    def use_calibrator(self, calibrator: Any) -> None:
        """Let a module with ``calibrated_scores`` and ``fuse`` make the final scores; None: the detector's own are."""
        self.calibrator: Any = calibrator
        for head in self.bbox_heads:
            head.fusion = self._fused if calibrator is not None else None

    def semantic(self, x: tuple[Tensor, ...]) -> Tensor | None:
        """Return the semantic feature map of FPN maps; None without a semantic branch."""
        return self.semantic_head(x)[1] if getattr(self, "with_semantic", False) else None

    def pooler(self, x: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """Return what pools features of FPN maps as mmdet's RoI head does, semantic ones included.

        Args:
            x: FPN maps, each ``(B, c, h, w)``.

        Returns:
            Takes a stage, RoIs ``(N, 5)`` (batch index, then xyxy in pixels of the network input) and the branch
            ``bbox`` (default) or ``mask``; returns what the head of that stage reads, ``(N, c, h, w)``.
        """
        return partial(self._pooled, x, self.semantic(x))

    def _pooled(
        self, x: tuple[Tensor, ...], semantic: Tensor | None, stage: int, rois: Tensor, branch: str = "bbox"
    ) -> Tensor:
        extractor = as_list(getattr(self, f"{branch}_roi_extractor"))[stage]
        feats: Tensor = extractor(x[: extractor.num_inputs], rois)
        if self.with_shared_head:
            feats = self.shared_head(feats)
        if semantic is not None and branch in self.semantic_fusion:
            pooled = self.semantic_roi_extractor([semantic], rois)
            feats = feats + F.adaptive_avg_pool2d(pooled, (feats.shape[-2], feats.shape[-1]))
        return feats

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: InstanceList, batch_data_samples: list[Any]
    ) -> dict[str, Tensor]:
        """Return mmdet's RoI losses and those of the parts."""
        for stage in range(len(self.bbox_heads)):
            for part in self.stage_parts(stage):
                part.before_images(self, stage, x, batch_data_samples)
        losses: dict[str, Tensor] = super().loss(x, rpn_results_list, batch_data_samples)  # type: ignore[misc]
        self._forget()
        for part in self.parts:
            if isinstance(part, HeadPart):
                losses.update(part.image_losses(self, x, batch_data_samples))
        return losses

    def predict(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: InstanceList,
        batch_data_samples: list[Any],
        rescale: bool = False,
    ) -> InstanceList:
        """As mmdet's; where images were flipped, so are the detections."""
        # mmdet's cascades would turn the masks back, but not the boxes.
        samples = [sample.new(metainfo={**sample.metainfo, "flip": False}) for sample in batch_data_samples]
        results = super().predict(x, rpn_results_list, samples, rescale)  # type: ignore[misc]
        self._forget()
        return results

    def learning_masks(self, sampling_results: list[Any], batch_gt_instances: InstanceList) -> list[Any]:
        """Return the positives that mask heads learn from: those whose object has a mask."""
        found, kept = positives_with_masks(sampling_results, batch_gt_instances)
        for head in self.mask_heads:
            head.kept = kept
        return list(found)

    def _forget(self) -> None:
        """Let go of the features that the heads have kept."""
        for head in (*self.bbox_heads, *self.mask_heads):
            head.seen = None

    def _fused(self, own: Tensor) -> dict[str, Tensor]:
        """Return the final scores ``(N, K + 1)`` and those they are made of, for the detector's own."""
        assert self.calibrator is not None
        feats = [head.seen[0] for head in self.bbox_heads]
        calibrated = self.calibrator.calibrated_scores(feats if isinstance(self.bbox_head, nn.ModuleList) else feats[0])
        scores = self.calibrator.fuse(own, calibrated)
        return {"scores": scores, "own_scores": own, "calibrated_scores": calibrated}

    def predict_rescored(
        self, x: tuple[Tensor, ...], proposals: InstanceData, sample: Any, rescore: Rescore, masks: bool = True
    ) -> Iterator[InstanceData]:
        """Yield the detections of one image in its own pixels for each set of scores; RoIs are pooled once.

        Args:
            x, proposals, sample, masks: As :meth:`predict_rois`.
            rescore: Makes sets of scores ``(n, K + 1)`` of what that returns.
        """
        found = self.predict_rois(x, proposals, sample, masks)
        for scores in rescore(found):
            chosen = self.bbox_heads[-1].detections(found, scores, self.test_cfg)
            yield self.with_masks(x, sample, chosen) if masks else chosen

    def predict_rois(
        self, x: tuple[Tensor, ...], proposals: InstanceData, sample: Any, masks: bool = True
    ) -> InstanceData:
        """Return what the last box head says of all RoIs of one image.

        Args:
            x: FPN maps, each ``(1, c, h, w)``.
            proposals, sample: Proposals of the image, and its data sample.
            masks: Whether detectors that can make masks will.

        Returns:
            As :meth:`ltpipe.engine.box_heads.BoxCallPoints.predict_by_feat`, with the image's metainfo.
        """
        more = {"semantic_feat": self.semantic(x)} if isinstance(self, HybridTaskCascadeRoIHead) else {}
        # With masks both boxes and masks are scaled when the masks are pasted.
        metas = [{**sample.metainfo, "flip": False}]
        (found,) = self.predict_bbox(x, metas, [proposals], None, rescale=not (masks and self.with_mask), **more)
        self._forget()
        found.set_metainfo(sample.metainfo)
        if not len(proposals):
            found.priors, found.own_scores, found.calibrated_scores = found.bboxes, found.scores, found.scores
        return found

    def with_masks(self, x: tuple[Tensor, ...], sample: Any, chosen: InstanceData) -> InstanceData:
        """Return detections of one image, chosen from :meth:`predict_rois`, with their masks, in its own pixels."""
        if not self.with_mask:
            return chosen
        more = {"semantic_heat": self.semantic(x)} if isinstance(self, HybridTaskCascadeRoIHead) else {}
        metas = [{**sample.metainfo, "flip": False}]
        (result,) = self.predict_mask(x=x, batch_img_metas=metas, results_list=[chosen], rescale=True, **more)
        return result


class _LabelledMasks(RoICallPoints):
    """Tells mask heads that make their filters of the classifier's rows which label each RoI has."""

    @contextmanager
    def labelled(self, labels: list[Tensor]) -> Iterator[None]:
        """Let mask heads know the labels of the next RoIs, ``(n,)`` int64 per image."""
        heads = [head for head in self.mask_heads if reads_classifier(head)]
        for head in heads:
            head.labels = torch.cat(labels)
        try:
            yield
        finally:
            for head in heads:
                head.labels = None

    def predict_mask(
        self, x: Any, batch_img_metas: list[Any], results_list: InstanceList, rescale: bool = False
    ) -> InstanceList:
        """As mmdet's; filters are those of the detected classes."""
        with self.labelled([res.labels for res in results_list]):
            return super().predict_mask(x, batch_img_metas, results_list, rescale)


@MODELS.register_module()
class LTRoIHead(_LabelledMasks, StandardRoIHead):
    """RoI head of one stage.

    Args:
        **kwargs: See :class:`RoICallPoints`.
    """

    def mask_loss(
        self, x: Any, sampling_results: list[Any], bbox_feats: Tensor, batch_gt_instances: InstanceList
    ) -> dict[str, Any]:
        """As mmdet's, without objects that have no mask; filters are those of the true classes."""
        if not self.share_roi_extractor:
            sampling_results = self.learning_masks(sampling_results, batch_gt_instances)
        with self.labelled([res.pos_gt_labels for res in sampling_results]):
            return super().mask_loss(x, sampling_results, bbox_feats, batch_gt_instances)


@MODELS.register_module()
class LTCascadeRoIHead(_LabelledMasks, CascadeRoIHead):
    """Cascade (arXiv 1712.00726).

    Args:
        **kwargs: See :class:`RoICallPoints`.
    """

    def mask_loss(
        self, stage: int, x: Any, sampling_results: list[Any], batch_gt_instances: InstanceList
    ) -> dict[str, Any]:
        """As mmdet's, without objects that have no mask; filters are those of the true classes."""
        sampling_results = self.learning_masks(sampling_results, batch_gt_instances)
        with self.labelled([res.pos_gt_labels for res in sampling_results]):
            return super().mask_loss(stage, x, sampling_results, batch_gt_instances)


@MODELS.register_module()
class LTHybridTaskCascadeRoIHead(RoICallPoints, HybridTaskCascadeRoIHead):
    """Hybrid task cascade (arXiv 1901.07518); mask heads are mmdet's ``HTCMaskHead``.

    At test time the masks of all stages are averaged, as in the paper; mmdet 3 takes those of the last stage.

    Args:
        **kwargs: See :class:`RoICallPoints`.
    """

    def mask_loss(
        self, stage: int, x: Any, sampling_results: list[Any], batch_gt_instances: InstanceList, **more: Any
    ) -> dict[str, Any]:
        """As mmdet's, without objects that have no mask."""
        sampling_results = self.learning_masks(sampling_results, batch_gt_instances)
        return super().mask_loss(stage, x, sampling_results, batch_gt_instances, **more)

    def _mask_forward(
        self, stage: int, x: Any, rois: Tensor, semantic_feat: Tensor | None = None, training: bool = True
    ) -> dict[str, Any]:
        if training:
            return super()._mask_forward(stage, x, rois, semantic_feat, training)
        feats = self._pooled(x, semantic_feat, stage, rois, "mask")
        logits, previous = [], None
        for head in self.mask_head:
            found, following = head(feats, previous)
            logits.append(found)
            previous = following if self.mask_info_flow else None
        return {"mask_preds": logits}

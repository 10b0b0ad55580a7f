"""Call points that all our RoI heads share: losses with parts, and detections from scores that may be exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import InstanceList
from torch import Tensor, nn

from ltpipe.engine.masked import positives_with_masks
from ltpipe.methods.base import BoxBatch, HeadPart, MaskBatch, batch_share
from ltpipe.registry import MODELS


@dataclass(frozen=True, eq=False)
class RoIScores:
    """What the box heads say of the proposals of a batch.

    Attributes:
        rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input; in a cascade those of the last
            stage.
        counts: Proposals per image.
        metas: Metainfo per image.
        bbox_feats: ``(N, c, h, w)`` float, pooled RoI features; in a cascade a tuple of them, stage after stage.
        scores: ``(N, K + 1)`` float probabilities, background last.
        deltas: ``(N, 4K)`` or ``(N, 4)`` float box deltas.
    """

    rois: Tensor
    counts: list[int]
    metas: list[dict[str, Any]]
    bbox_feats: Tensor | tuple[Tensor, ...]
    scores: Tensor
    deltas: Tensor


Rescore = Callable[[RoIScores], Iterable[Tensor]]


def class_logits(mask_head: Any, bbox_head: Any, feats: Tensor, labels: Tensor | None) -> Tensor:
    """Return the logits of a mask head, which may make its filters from the rows of the box head's classifier."""
    if getattr(mask_head, "needs_class_weight", False):
        return mask_head(feats, class_weight=bbox_head.fc_cls.weight, labels=labels)
    return mask_head(feats)


class CallPoints:
    """What our RoI heads add to mmdet's: parts during training, exchangeable scores at test time.

    A RoI head has one or, in a cascade, several stages; ``bbox_heads`` are their box heads in order.

    Args:
        parts: Configs of :class:`ltpipe.methods.base.HeadPart` modules, called in this order; a list of configs in
            place of one has a part per stage.
        calibrator: Config of a module whose ``fuse(bbox_feats, scores)`` turns the head's own scores ``(N, K + 1)``
            into the final ones, or None.
        loss_average: What box, mask and distillation losses are averaged over: the items of this ``process``, as in
            mmdet, or those of the whole ``batch``, which makes a training independent of the number of processes.
        **kwargs: Passed to mmdet's RoI head.
    """

    # What mmdet's RoI heads bring along.
    bbox_head: Any
    bbox_roi_extractor: Any
    mask_head: Any
    mask_roi_extractor: Any
    train_cfg: Any
    test_cfg: Any
    with_mask: bool

    def __init__(
        self,
        *args: Any,
        parts: Sequence[dict[str, Any] | list[dict[str, Any]]] | None = None,
        calibrator: dict[str, Any] | None = None,
        loss_average: Literal["process", "batch"] = "process",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss_average = loss_average
        self.parts = nn.ModuleList(
            nn.ModuleList(map(MODELS.build, part)) if isinstance(part, list | tuple) else MODELS.build(part)
            for part in parts or []
        )
        self.calibrator = MODELS.build(calibrator) if calibrator is not None else None

    @property
    def bbox_heads(self) -> list[Any]:
        """The box head of every stage."""
        raise NotImplementedError

    @property
    def stage_weights(self) -> list[float]:
        """The loss weight of every stage."""
        raise NotImplementedError

    def context(self, x: tuple[Tensor, ...]) -> dict[str, Any]:
        """Return what all stages share besides the FPN maps, as keyword arguments of the methods below."""
        return {}

    def pooled(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> Tensor:
        """Return the features ``(N, c, h, w)`` that the box head of a stage reads of RoIs ``(N, 5)``."""
        raise NotImplementedError

    def mask_logits(self, x: tuple[Tensor, ...], rois: Tensor, labels: Tensor, **context: Any) -> list[Tensor]:
        """Return the mask logits of every stage for detected boxes ``(D, 5)`` and their labels ``(D,)``."""
        raise NotImplementedError

    def stage_parts(self, stage: int) -> list[Any]:
        """Return the parts that a stage calls."""
        return [part[stage] if isinstance(part, nn.ModuleList) else part for part in self.parts]

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: InstanceList, batch_data_samples: list[Any]
    ) -> dict[str, Tensor]:
        """Return mmdet's RoI losses and those of the parts."""
        losses: dict[str, Tensor] = super().loss(x, rpn_results_list, batch_data_samples)  # type: ignore[misc]
        for part in self.parts:
            if isinstance(part, HeadPart):
                losses.update(part.image_losses(self, x, batch_data_samples))
        return losses

    def box_outputs(self, stage: int, x: tuple[Tensor, ...], rois: Tensor, **context: Any) -> dict[str, Tensor]:
        """Return what the box head of a stage says of RoIs ``(N, 5)``.

        Returns:
            ``bbox_feats`` ``(N, c, h, w)`` pooled, ``features`` ``(N, d)`` input of the classifier, ``cls_score``
            ``(N, C)``, ``bbox_pred`` ``(N, 4K)`` or ``(N, 4)``.
        """
        head, bbox_feats = self.bbox_heads[stage], self.pooled(stage, x, rois, **context)
        features, for_reg = head.shared_features(bbox_feats)
        return {
            "bbox_feats": bbox_feats,
            "features": features,
            "cls_score": head.fc_cls(features),
            "bbox_pred": head.fc_reg(for_reg),
        }

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

    def box_losses(
        self,
        stage: int,
        outputs: dict[str, Tensor],
        rois: Tensor,
        sampling_results: list[SamplingResult],
        cfg: Any,
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Return the losses of a stage's box head, those of its parts included, and its targets.

        Args:
            stage: The stage.
            outputs: Of :meth:`box_outputs`.
            rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input.
            sampling_results: Per image.
            cfg: mmdet's ``train_cfg.rcnn`` of the stage.

        Returns:
            Losses, and ``labels``, ``label_weights``, ``bbox_targets``, ``bbox_weights`` as mmdet's ``get_targets``.
        """
        head, parts = self.bbox_heads[stage], self.stage_parts(stage)
        targets = head.get_targets(sampling_results, cfg)
        losses: dict[str, Tensor] = head.loss(outputs["cls_score"], outputs["bbox_pred"], rois, *targets)
        if not len(rois):
            # mmdet skips an empty batch, but every process must report the same keys and join in the same reductions.
            found = head.loss_cls(outputs["cls_score"], targets[0], targets[1], avg_factor=1)
            losses.update(found if isinstance(found, dict) else {"loss_cls": found})
        losses = self.averaged(losses, int((targets[1] > 0).sum()), rois.device)
        if parts:
            names = ("labels", "label_weights", "bbox_targets", "bbox_weights")
            batch = BoxBatch(rois=rois, losses=losses, **outputs, **dict(zip(names, targets, strict=True)))
            for part in parts:
                losses.update(part.box_losses(head, batch))
        return losses, targets

    def mask_losses(
        self,
        stage: int,
        head: Any,
        forward: Callable[[Tensor, Tensor], dict[str, Tensor]],
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
        cfg: Any,
    ) -> dict[str, Any]:
        """Return the outputs of a stage's mask head and, as ``loss_mask``, its losses with those of its parts.

        Objects without a mask are left out.

        Args:
            stage: The stage.
            head: Its mask head.
            forward: Takes RoIs ``(P, 5)`` and their labels ``(P,)``; returns ``mask_preds`` and ``mask_feats``.
            sampling_results: Per image.
            batch_gt_instances: Ground truth per image.
            cfg: mmdet's ``train_cfg.rcnn`` of the stage.
        """
        parts = self.stage_parts(stage)
        positives, kept = positives_with_masks(sampling_results, batch_gt_instances)
        rois = bbox2roi([res.pos_priors for res in positives])
        labels = torch.cat([res.pos_gt_labels for res in positives])
        seen: list[Tensor] = []
        predictor = head.conv_logits if parts else None  # None in heads that make their filters
        hook = predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) if predictor else None
        outputs = forward(rois, labels)
        if hook is not None:
            hook.remove()
        found = head.loss_and_target(outputs["mask_preds"], positives, batch_gt_instances, cfg)
        losses = self.averaged(found["loss_mask"], len(rois), rois.device)
        if parts:
            batch = MaskBatch(
                features=seen[0] if seen else outputs["mask_feats"],
                mask_preds=outputs["mask_preds"],
                targets=found["mask_targets"],
                labels=labels,
                kept=kept,
                losses=losses,
            )
            for part in parts:
                losses.update(part.mask_losses(head, batch))
        return {**outputs, "loss_mask": losses}

    def predict(
        self,
        x: tuple[Tensor, ...],
        rpn_results_list: InstanceList,
        batch_data_samples: list[Any],
        rescale: bool = False,
    ) -> InstanceList:
        """Return the detections of each image: ``bboxes`` xyxy, ``scores``, ``labels``; ``masks`` with a mask head.

        Args:
            x: FPN maps, each ``(B, c, h, w)``.
            rpn_results_list: Proposals of ``B`` images.
            batch_data_samples: Their data samples.
            rescale: Return boxes and masks in pixels of the original images.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        context = self.context(x)
        # With masks both boxes and masks are scaled when the masks are pasted.
        rescale_boxes = rescale and not self.with_mask
        results = self.predict_bbox(x, metas, rpn_results_list, self.test_cfg, rescale_boxes, **context)
        return self.predict_mask(x, metas, results, rescale, **context) if self.with_mask else results

    def predict_bbox(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        rpn_results_list: InstanceList,
        rcnn_test_cfg: Any,
        rescale: bool = False,
        **context: Any,
    ) -> InstanceList:
        """Return the detections of each image: ``bboxes`` xyxy, ``scores``, ``labels``."""
        found = self.score_rois(x, batch_img_metas, rpn_results_list, **context)
        scores = found.scores
        if self.calibrator is not None:
            scores = self.calibrator.fuse(found.bbox_feats, scores)
        return self._detect(found, scores, rcnn_test_cfg, rescale)

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
        context = self.context(x)
        found = self.score_rois(x, metas, rpn_results_list, **context)
        for scores in rescore(found):
            results = self._detect(found, scores, self.test_cfg, rescale=not self.with_mask)
            yield self.predict_mask(x, metas, results, rescale=True, **context) if self.with_mask else results

    def score_rois(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        rpn_results_list: InstanceList,
        **context: Any,
    ) -> RoIScores:
        """Return what the box heads say of every proposal, before any calibrator.

        Stages see the boxes that those before have refined. Their classifiers' outputs are averaged and only then
        activated, as in mmdet.
        """
        proposals = [res.bboxes for res in rpn_results_list]
        counts = [len(p) for p in proposals]
        stages = list(self.refinement(x, bbox2roi(proposals), counts, batch_img_metas, **context))
        rois, last = stages[-1]
        feats = tuple(found["bbox_feats"] for _, found in stages)
        logits = [found["cls_score"] for _, found in stages]
        return RoIScores(
            rois=rois,
            counts=counts,
            metas=batch_img_metas,
            bbox_feats=feats if isinstance(self.bbox_head, nn.ModuleList) else feats[0],
            scores=self.bbox_heads[-1].probabilities(sum(logits) / len(logits)),
            deltas=last["bbox_pred"],
        )

    def refinement(
        self,
        x: tuple[Tensor, ...],
        rois: Tensor,
        counts: list[int],
        batch_img_metas: list[dict[str, Any]],
        **context: Any,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield for every stage the RoIs ``(N, 5)`` it sees and its :meth:`box_outputs`, as at test time.

        Args:
            x: FPN maps, each ``(B, c, h, w)``.
            rois: ``(N, 5)`` float proposals, batch index then xyxy in pixels of the network input.
            counts: Proposals per image.
            batch_img_metas: Metainfo per image.
            **context: Of :meth:`context`.
        """
        for stage, head in enumerate(self.bbox_heads):
            found = self.box_outputs(stage, x, rois, **context)
            yield rois, found
            if stage + 1 < len(self.bbox_heads):
                rois = head.refined(rois, found["cls_score"], found["bbox_pred"], counts, batch_img_metas)

    def _detect(self, found: RoIScores, scores: Tensor, cfg: Any, rescale: bool) -> InstanceList:
        counts = found.counts
        per_image = zip(
            found.rois.split(counts), scores.split(counts), found.deltas.split(counts), found.metas, strict=True
        )
        return [self.bbox_heads[-1].detections(*inputs, cfg, rescale) for inputs in per_image]

    def predict_mask(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        results_list: InstanceList,
        rescale: bool = False,
        **context: Any,
    ) -> InstanceList:
        """Add ``masks`` ``(D, H, W)`` bool to the detections of each image; stages are averaged after the sigmoid."""
        rois = bbox2roi([res.bboxes for res in results_list])
        if not len(rois):
            return empty_instances(
                batch_img_metas,
                rois.device,
                task_type="mask",
                instance_results=results_list,
                mask_thr_binary=self.test_cfg.mask_thr_binary,
            )
        logits = self.mask_logits(x, rois, torch.cat([res.labels for res in results_list]), **context)
        last: Any = self.mask_head[-1] if isinstance(self.mask_head, nn.ModuleList) else self.mask_head
        several = len(logits) > 1
        masks = logits[0]
        if several:
            masks = sum((stage.sigmoid() for stage in logits[1:]), masks.sigmoid()) / len(logits)
        return last.predict_by_feat(
            mask_preds=masks.split([len(res) for res in results_list]),
            results_list=results_list,
            batch_img_metas=batch_img_metas,
            rcnn_test_cfg=self.test_cfg,
            rescale=rescale,
            activate_map=several,
        )

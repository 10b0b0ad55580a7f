"""Box heads with call points for parts and fused scores: mmdet's ``ConvFCBBoxHead``, whatever layers it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.utils import InstanceList
from mmengine.model import bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import rectifies
from ltpipe.methods.class_rows import BOX_HEAD
from ltpipe.methods.head_parts import BoxBatch
from ltpipe.methods.reductions import LossAverage, averaged
from ltpipe.registry import MODELS


class BoxCallPoints(ConvFCBBoxHead):
    """What our box heads add to mmdet's, whatever convolutions and fully connected layers they have.

    A classifier class with ``rectify_input = False`` (LST's cosine classifier) reads the last fully connected layer
    before its ReLU; the regressor always reads it after.

    Attributes:
        parts: Parts that this head calls, in this order; a plain list, since the RoI head owns them.
        loss_average: What the losses are averaged over; see :func:`~ltpipe.methods.reductions.averaged`.
        fusion: Turns the detector's scores ``(N, K + 1)`` of all RoIs into ``scores``, the final ones, and others by
            name; None if the detector's own are final.
        seen: With parts or a fusion, pooled features and classifier input of the last forward pass.
    """

    class_rows = BOX_HEAD

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: list[Any] = []
        self.loss_average: LossAverage = "process"
        self.fusion: Callable[[Tensor], dict[str, Tensor]] | None = None
        self.seen: tuple[Tensor, Tensor] | None = None
        if self.with_cls and not (rectifies(self.fc_cls) or len(self.shared_fcs) or len(self.cls_fcs)):
            raise UserError(
                "this classifier reads a fully connected layer before its ReLU, and the box head has none",
                where="model.roi_head.bbox_head",
                got=f"{type(self.fc_cls).__name__} after convolutions only",
                allowed="num_shared_fcs or num_cls_fcs of at least 1, or another classifier",
            )

    def init_weights(self) -> None:
        """Initialise as mmdet; sigmoid losses with a ``prior_prob`` get the bias that makes it the first score.

        A loss may set the weights of its classifier itself, in ``init_classifier``.
        """
        super().init_weights()
        prior = getattr(self.loss_cls, "prior_prob", None)
        if prior is not None and getattr(self.fc_cls, "bias", None) is not None:
            nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(prior))
        if hasattr(self.loss_cls, "init_classifier"):
            self.loss_cls.init_classifier(self.fc_cls)

    def predictor_inputs(self, bbox_feats: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of the classifier ``(N, d)`` and of the regressor ``(N, e)``.

        Args:
            bbox_feats: ``(N, c, h, w)`` float, pooled RoI features.
        """
        return self.inputs_of_shared(self.shared_output(bbox_feats))

    def shared_output(self, bbox_feats: Tensor) -> Tensor:
        """Return what the shared layers make of pooled features, before the last ReLU if they are fully connected."""
        return self._branch(bbox_feats, self.shared_convs, self.shared_fcs, flat=len(self.shared_fcs) > 0)[0]

    def inputs_of_shared(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`predictor_inputs`, of the :meth:`shared_output`."""
        x = F.relu(raw) if len(self.shared_fcs) else raw
        own_raw, for_cls = self._branch(x, self.cls_convs, self.cls_fcs)
        _, for_reg = self._branch(x, self.reg_convs, self.reg_fcs)
        if self.with_cls and not rectifies(self.fc_cls):
            for_cls = own_raw if len(self.cls_fcs) else raw
        return for_cls, for_reg

    def _branch(self, x: Tensor, convs: nn.ModuleList, fcs: nn.ModuleList, flat: bool = True) -> tuple[Tensor, Tensor]:
        """Return the output of a branch before and after its last ReLU; ``flat`` after pooling, as mmdet does it."""
        for conv in convs:
            x = conv(x)
        if flat and x.dim() > 2:
            x = (self.avg_pool(x) if self.with_avg_pool else x).flatten(1)
        raw = x
        for fc in fcs:
            raw = fc(x)
            x = F.relu(raw)
        return raw, x

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return class scores ``(N, C)`` and box deltas ``(N, 4K)`` (``(N, 4)`` when class-agnostic)."""
        for_cls, for_reg = self.predictor_inputs(x)
        if self.parts or self.fusion is not None:
            self.seen = x, for_cls
        return self.fc_cls(for_cls) if self.with_cls else None, self.fc_reg(for_reg) if self.with_reg else None

    def loss_and_target(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        rcnn_train_cfg: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As mmdet's, with the parts called before and after the ordinary losses."""
        targets = self.get_targets(sampling_results, rcnn_train_cfg)
        if not self.parts:
            losses = self._losses(cls_score, bbox_pred, rois, *targets, **kwargs)
            return {"loss_bbox": losses, "bbox_targets": targets}
        assert self.seen is not None
        names = ("labels", "label_weights", "bbox_targets", "bbox_weights")
        batch = BoxBatch(
            rois=rois,
            cls_score=cls_score,
            bbox_pred=bbox_pred,
            bbox_feats=self.seen[0],
            features=self.seen[1],
            **dict(zip(names, targets, strict=True)),
        )
        batch.objects, batch.num_objects = assigned_objects(sampling_results)
        batch.losses = self.losses_of(batch, **kwargs)
        for part in self.parts:
            batch.losses.update(part.box_losses(self, batch))
        return {"loss_bbox": batch.losses, "bbox_targets": targets}

    def losses_of(self, batch: BoxBatch, **kwargs: Any) -> dict[str, Tensor]:
        """Return the ordinary losses of a batch, as the parts want them computed."""
        for part in self.parts:
            batch = part.before_losses(self, batch)
        targets = batch.labels, batch.label_weights, batch.bbox_targets, batch.bbox_weights
        return self._losses(batch.cls_score, batch.bbox_pred, batch.rois, *targets, **kwargs)

    def _losses(self, cls_score: Tensor, bbox_pred: Tensor | None, rois: Tensor, *targets: Any, **kwargs: Any) -> Any:
        losses: dict[str, Tensor] = self.loss(cls_score, bbox_pred, rois, *targets, **kwargs)
        if not len(rois):
            # mmdet skips an empty batch, but every process must report the same keys and join in the same reductions.
            loss = self.loss_cls(cls_score, targets[0], targets[1], avg_factor=1)
            losses.update(loss if isinstance(loss, dict) else {"loss_cls": loss})
        return averaged(losses, (targets[1] > 0).sum(), self.loss_average)

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

    def predict_by_feat(
        self,
        rois: tuple[Tensor, ...],
        cls_scores: tuple[Tensor, ...],
        bbox_preds: tuple[Tensor, ...],
        batch_img_metas: list[dict[str, Any]],
        rcnn_test_cfg: Any = None,
        rescale: bool = False,
    ) -> InstanceList:
        """As mmdet's, with fused scores.

        Without ``rcnn_test_cfg`` mmdet returns all RoIs, with ``bboxes`` ``(n, 4K)`` or ``(n, 4)`` and ``scores``
        ``(n, K + 1)``; here they also have their boxes ``priors`` ``(n, 4)``, xyxy in pixels of the network input, and
        what else the fusion says.
        """
        if self.fusion is None and rcnn_test_cfg is not None:
            return super().predict_by_feat(rois, cls_scores, bbox_preds, batch_img_metas, rcnn_test_cfg, rescale)
        found = super().predict_by_feat(rois, cls_scores, bbox_preds, batch_img_metas, None, rescale)
        counts = [len(one) for one in rois]
        fused = self.fusion(torch.cat([one.scores for one in found])) if self.fusion is not None else {}
        columns = {"priors": [one[:, 1:] for one in rois], **{key: value.split(counts) for key, value in fused.items()}}
        for key, values in columns.items():
            for one, value in zip(found, values, strict=True):
                one[key] = value
        if rcnn_test_cfg is None:
            return found
        return [self.detections(one, one.scores, rcnn_test_cfg) for one in found]

    def detections(self, found: InstanceData, scores: Tensor, cfg: Any) -> InstanceData:
        """Choose the detections of one image.

        Args:
            found: ``bboxes`` ``(n, 4K)`` or ``(n, 4)`` xyxy of all RoIs.
            scores: ``(n, K + 1)`` float, background last.
            cfg: mmdet's ``test_cfg.rcnn``: ``score_thr``, ``nms``, ``max_per_img``.

        Returns:
            ``bboxes`` ``(D, 4)`` xyxy, ``scores`` ``(D,)`` and ``labels`` ``(D,)``, best first.
        """
        kept, labels = multiclass_nms(found.bboxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img)
        return InstanceData(bboxes=kept[:, :4], scores=kept[:, 4], labels=labels)


def assigned_objects(sampling_results: list[SamplingResult]) -> tuple[Tensor, int]:
    """Return the object of every RoI, ``(N,)`` int64 counted over the images, -1 for background; and their number."""
    found, count = [], 0
    for result in sampling_results:
        positive: Tensor = result.pos_assigned_gt_inds
        found += [positive + count, positive.new_full((len(result.neg_inds),), -1)]
        count += result.num_gts
    return torch.cat(found), count


@MODELS.register_module()
class LTBBoxHead(BoxCallPoints, Shared2FCBBoxHead):
    """Two shared fully connected layers, then a classifier and a box regressor."""


@MODELS.register_module()
class LTShared4Conv1FCBBoxHead(BoxCallPoints, Shared4Conv1FCBBoxHead):
    """Four shared convolutions and one shared fully connected layer."""


@MODELS.register_module()
class LTConvFCBBoxHead(BoxCallPoints):
    """Any number of convolutions and fully connected layers, shared and of either branch."""

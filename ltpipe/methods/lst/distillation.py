"""Distillation of the previous model's class similarities on ground-truth boxes of new classes.

Paper: Learning to Segment the Tail (Hu et al., CVPR 2020, arXiv 2004.00900); loss of JoyHuYY1412/LST_LVIS:

    L_KD = weight / N * sum_{b <= N} sum_{j < K_{n-1}} (cos(x_b, w_j) - t[b, j])^2

over the ``N`` boxes of new classes (label at least ``K_{n-1}``) in the images of one process, without the classifier's
scale, without the background row, normalised per process unless the RoI head's ``loss_average`` is ``batch``. Acts in
the RoI head as a part that sends those boxes through the shared box head a second time. Needs ``gt_instances.ann_ids``
and the metainfo ``img_id`` and ``flip``. Classifiers without a scale are compared by their logits. In a cascade every
stage learns from the same stage of the previous model, with the weight of its other losses; the columns of a teacher
are then those of stage 0, stage 1 and so on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from ltpipe.checkpoints.tensor_checks import check_tensors
from ltpipe.checkpoints.torch_files import load_plain
from ltpipe.errors import UserError
from ltpipe.methods.head_parts import HeadPart
from ltpipe.methods.reductions import averaged, bare_model, touch
from ltpipe.registry import HOOKS, MODELS, TASK_UTILS


def new_class_boxes(labels: Tensor, num_old: int) -> Tensor:
    """Return the indices ``(b,)`` int64 of the boxes that are distilled, from labels ``(G,)`` int64."""
    return (labels >= num_old).nonzero()[:, 0]


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    weight: float = 1.0,
    reduction: Literal["sum_classes", "mean_classes"] = "sum_classes",
) -> Tensor:
    """Return the mean over boxes of the squared differences, summed or averaged over the old classes.

    Args:
        student: ``(N, K)`` float similarities to the old classes.
        teacher: ``(N, K)`` float, constant.
        weight: Factor of the result.
        reduction: Over classes.

    Returns:
        Scalar float32; zero that depends on ``student`` when there is no box.
    """
    difference = (student.float() - teacher.float()) ** 2
    if not len(difference):
        return difference.sum()
    per_box = difference.sum(dim=1) if reduction == "sum_classes" else difference.mean(dim=1)
    return weight * per_box.mean()


def box_similarities(
    roi_head: Any, feats: Sequence[Tensor], boxes: Sequence[Tensor], num_classes: int | None = None
) -> Tensor:
    """Send boxes through the shared box head and compare them with the classifier's rows.

    Args:
        roi_head: RoI head with :class:`ltpipe.engine.roi_heads.RoICallPoints`.
        feats: FPN maps, each ``(I, c, h, w)``.
        boxes: Per image, ``(b, 4)`` xyxy in pixels of the network input.
        num_classes: Leading rows to compare with, ``C``; None: all.

    Returns:
        ``(B, C)`` float32, images in order; cosines, or the logits of a classifier without ``similarities``. In a
        cascade of ``S`` stages, which all see these boxes, ``(B, S * C)``.
    """
    rois, pool = bbox2roi(list(boxes)), roi_head.pooler(tuple(feats))
    found = []
    for stage, head in enumerate(roi_head.bbox_heads):
        features, _ = head.predictor_inputs(pool(stage, rois))
        compare: Callable[[Tensor], Tensor] = getattr(head.fc_cls, "similarities", head.fc_cls)
        # A cosine rounded to 16 bits is off by more than a trained student is from its teacher.
        with torch.autocast(features.device.type, enabled=False):
            found.append(compare(features.to(head.fc_cls.weight.dtype)).float()[:, :num_classes])
    return torch.cat(found, dim=1)


@torch.no_grad()
def teacher_rows(
    roi_head: Any, feats: Sequence[Tensor], samples: Sequence[Any], num_old: int
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Return what the distill stage stores of a batch, see :meth:`ltpipe.methods.lst.teacher.TeacherLogits.collect`.

    Args:
        roi_head: RoI head of the previous model, in evaluation mode.
        feats: FPN maps, each ``(I, c, h, w)``.
        samples: ``I`` data samples with ground truth, annotation ids and ``img_id``.
        num_old: Number of classes of the previous model.

    Returns:
        Per image: image id, annotation ids ``(b,)``, labels ``(b,)``, similarities ``(b, K)`` float32 to the old
        classes, in a cascade ``(b, S * K)``.
    """
    gts = [sample.gt_instances for sample in samples]
    picked = [new_class_boxes(gt.labels, num_old) for gt in gts]
    boxes = [get_box_tensor(gt.bboxes)[index] for gt, index in zip(gts, picked, strict=True)]
    similar = box_similarities(roi_head, feats, boxes, num_old).split([len(b) for b in boxes])
    return [
        (int(sample.img_id), *(t.cpu().numpy() for t in (gt.ann_ids[index], gt.labels[index], values)))
        for sample, gt, index, values in zip(samples, gts, picked, similar, strict=True)
    ]


@TASK_UTILS.register_module()
class OnlineTeacher:
    """The previous detector in memory, applied to the very images the student sees.

    For training with other augmentation than horizontal flips; needs :class:`OnlineTeacherHook`.

    Args:
        model: Model config of the previous detector.
        checkpoint: Its weights.
        num_old: Number of classes it knows.
    """

    def __init__(self, model: dict[str, Any], checkpoint: str, num_old: int) -> None:
        self.model, self.checkpoint, self.num_old = model, checkpoint, num_old
        self._images: Tensor | None = None

    @cached_property
    def detector(self) -> Any:
        """The frozen detector, in evaluation mode."""
        model = ConfigDict(copy.deepcopy(self.model))
        model.roi_head.parts = None  # they only act in training
        with DefaultScope.overwrite_default_scope("mmdet"):
            detector = MODELS.build(model)
        state = load_plain(self.checkpoint)["state_dict"]
        state = {key: value for key, value in state.items() if not key.startswith("roi_head.parts.")}
        check_tensors(state, self.checkpoint)
        wrong = detector.load_state_dict(state, strict=False)
        if wrong.missing_keys or wrong.unexpected_keys:
            raise UserError(
                "the teacher's checkpoint does not fit its config",
                where=self.checkpoint,
                got=f"missing {wrong.missing_keys[:5]}, unexpected {wrong.unexpected_keys[:5]}",
                allowed="the weights of that detector",
            )
        return detector.eval().requires_grad_(False)

    def watch(self, student: Any) -> None:
        """Take the images of every training step from the student's backbone."""

        def remember(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._images = inputs[0].detach()

        student.backbone.register_forward_pre_hook(remember)

    @torch.no_grad()
    def targets(self, samples: Sequence[Any], picked: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the teacher's similarities; arguments and result as ``CachedTeacher.targets``."""
        assert self._images is not None, "OnlineTeacherHook must run before training"
        chosen = [i for i, index in enumerate(picked) if len(index)]
        found: list[Tensor | None] = [None] * len(samples)
        if chosen:
            detector = self.detector.to(self._images.device)
            boxes = [get_box_tensor(samples[i].gt_instances.bboxes)[picked[i]] for i in chosen]
            feats = detector.extract_feat(self._images[chosen])
            rows = box_similarities(detector.roi_head, feats, boxes, self.num_old)
            for i, values in zip(chosen, rows.split([len(b) for b in boxes]), strict=True):
                found[i] = values
        return found


@MODELS.register_module()
class LSTDistillation(HeadPart):
    """Adds ``loss_distill`` to the losses of the RoI head, on every process and in every iteration.

    Args:
        num_old: Number of classes of the previous model.
        teacher: Config of a ``CachedTeacher`` or an ``OnlineTeacher``.
        weight: Loss weight (LST: 1).
        reduction: Over the old classes; LST sums, so that its weight grows with their number.
    """

    def __init__(
        self,
        num_old: int,
        teacher: dict[str, Any],
        weight: float = 1.0,
        reduction: Literal["sum_classes", "mean_classes"] = "sum_classes",
    ) -> None:
        super().__init__()
        self.num_old, self.weight, self.reduction = num_old, weight, reduction
        self.teacher = TASK_UTILS.build(teacher, default_args={"num_old": num_old})

    def image_losses(self, roi_head: Any, feats: Sequence[Tensor], samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return ``loss_distill``; nothing in evaluation mode, when the images are not those of the phase.

        Args:
            roi_head: RoI head of the student, with :class:`ltpipe.engine.roi_heads.RoICallPoints`.
            feats: FPN maps, each ``(I, c, h, w)``.
            samples: ``I`` data samples.

        Raises:
            UserError: An image's flip state is unknown or its boxes have no teacher rows.
        """
        if not self.training:
            return {}
        picked = [new_class_boxes(sample.gt_instances.labels, self.num_old) for sample in samples]
        targets = self.teacher.targets(samples, picked)
        known = [target for target in targets if target is not None and len(target)]
        if not known:
            every = (p for head in roi_head.bbox_heads for p in head.fc_cls.parameters())
            return averaged({"loss_distill": touch(*every).float()}, 0, roi_head.loss_average)
        boxes = [
            get_box_tensor(sample.gt_instances.bboxes)[index if target is not None else index[:0]]
            for sample, index, target in zip(samples, picked, targets, strict=True)
        ]
        student, teacher = box_similarities(roi_head, feats, boxes, self.num_old), torch.cat(known)
        losses = [
            distillation_loss(mine, theirs, self.weight * weight, self.reduction)
            for mine, theirs, weight in zip(
                student.split(self.num_old, 1), teacher.split(self.num_old, 1), roi_head.stage_loss_weights, strict=True
            )
        ]
        return averaged({"loss_distill": torch.stack(losses).sum()}, len(student), roi_head.loss_average)


@HOOKS.register_module()
class OnlineTeacherHook(Hook):
    """Shows the student's images to every :class:`OnlineTeacher` of the model."""

    def before_train(self, runner: Runner) -> None:
        """Attach the teachers once the model is complete."""
        model = bare_model(runner)
        for part in model.modules():
            if isinstance(part, LSTDistillation) and isinstance(part.teacher, OnlineTeacher):
                part.teacher.watch(model)

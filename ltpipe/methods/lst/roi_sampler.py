"""RoI sampling restricted to the class an image was drawn for.

Paper: Learning to Segment the Tail (CVPR 2020, arXiv 2004.00900); sampler of the repository JoyHuYY1412/LST_LVIS.

Balanced replay draws pairs (image, class c). For such an image

    P     = RoIs assigned to an object of class c; if there is none, the first 10 foreground RoIs
    n_pos = min(|P|, floor(num * pos_fraction)),   n_neg = min(|background|, num - n_pos)

are drawn uniformly without replacement; RoIs on objects of other classes are left out altogether. Needs the paired
label as ``replay_label`` in the metainfo of ``gt_instances``; images without it are sampled in mmdet's ordinary way.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import RandomSampler, SamplingResult
from mmengine.structures import InstanceData
from torch import Tensor

from ltpipe.registry import TASK_UTILS

FALLBACK = 10


def paired_positives(labels: Tensor, foreground: Tensor, target: int) -> Tensor:
    """Return the RoIs that may be positive in an image drawn for one class.

    Args:
        labels: ``(N,)`` int64 label of the object each RoI is assigned to; any value where not foreground.
        foreground: ``(N,)`` bool.
        target: Label of the class.

    Returns:
        ``(P,)`` int64 indices, ascending.
    """
    wanted = (foreground & (labels == target)).nonzero()[:, 0]
    return wanted if len(wanted) else foreground.nonzero()[:FALLBACK, 0]


@TASK_UTILS.register_module()
class ClassRestrictedSampler(RandomSampler):
    """mmdet's ``RandomSampler`` with positives of the paired class only.

    Takes the same arguments. LST: ``num=200, pos_fraction=0.25``, ground-truth boxes added to the proposals.
    """

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        """Sample RoIs of one image.

        Args:
            assign_result: Object of every proposal; labels are foreground labels.
            pred_instances: ``priors`` ``(N, 4)`` xyxy in pixels of the network input.
            gt_instances: ``bboxes``, ``labels`` and, in its metainfo, ``replay_label``.
            **kwargs: Ignored, as in mmdet.
        """
        target = gt_instances.metainfo.get("replay_label")
        return super().sample(assign_result, pred_instances, gt_instances, target=target, **kwargs)

    def _sample_pos(self, assign_result: AssignResult, num_expected: int, **kwargs: Any) -> Tensor:
        target = kwargs.get("target")
        if target is None:
            return super()._sample_pos(assign_result, num_expected, **kwargs)
        candidates = paired_positives(assign_result.labels, assign_result.gt_inds > 0, int(target))
        if len(candidates) <= num_expected:
            return candidates
        return candidates[torch.randperm(len(candidates), device="cpu")[:num_expected].to(candidates.device)]

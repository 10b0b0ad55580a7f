"""Positive RoIs whose object has a mask: what mask heads learn from where some objects are boxes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.utils import InstanceList
from torch import Tensor


class Positives(NamedTuple):
    """Positive RoIs of an image, as mask heads read them of a ``SamplingResult``.

    Attributes:
        pos_priors: ``(P, 4)`` float xyxy in pixels of the network input.
        pos_gt_labels: ``(P,)`` int64.
        pos_assigned_gt_inds: ``(P,)`` int64 place of their object in the ground truth.
    """

    pos_priors: Tensor
    pos_gt_labels: Tensor
    pos_assigned_gt_inds: Tensor


def positives_with_masks(
    sampling_results: Sequence[SamplingResult], batch_gt_instances: InstanceList
) -> tuple[Sequence[SamplingResult | Positives], Tensor | None]:
    """Return the positives whose objects have masks, and which of all positives ``(P,)`` bool they are; None: all."""
    pairs = list(zip(sampling_results, batch_gt_instances, strict=True))
    if not any("has_mask" in gt for _, gt in pairs):
        return sampling_results, None
    kept = [gt.has_mask[res.pos_assigned_gt_inds] for res, gt in pairs]
    if bool(torch.cat(kept).all()):
        return sampling_results, None
    found = [
        Positives(res.pos_priors[own], res.pos_gt_labels[own], res.pos_assigned_gt_inds[own])
        for res, own in zip(sampling_results, kept, strict=True)
    ]
    return found, torch.cat(kept)

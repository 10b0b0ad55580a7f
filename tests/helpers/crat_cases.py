"""Small box and mask heads with batches for the tests of CRAT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor, nn

from ltpipe.methods.crat.part import CRAT
from ltpipe.methods.head_parts import BoxBatch, MaskBatch

K, D = 6, 10


class BoxHead(nn.Module):
    """The last layers of a box head."""

    def __init__(self, num_classes: int = K, loss_bbox: nn.Module | None = None, decoded: bool = False) -> None:
        super().__init__()
        self.num_classes, self.reg_decoded_bbox = num_classes, decoded
        self.fc_cls, self.fc_reg = nn.Linear(D, num_classes + 1), nn.Linear(D, 4 * num_classes)
        self.loss_bbox = loss_bbox or L1Loss()
        self.bbox_coder = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))


class MaskHead(nn.Module):
    """The last layer of a mask head."""

    def __init__(self, num_classes: int = K, width: int = 5) -> None:
        super().__init__()
        self.conv_logits, self.loss_mask = nn.Conv2d(width, num_classes, 1), CrossEntropyLoss(use_mask=True)


@dataclass
class Inputs:
    """RoIs of one batch."""

    x: Tensor
    labels: Tensor
    targets: Tensor
    rois: Tensor = field(default_factory=Tensor)

    def rows(self, chosen: Tensor | slice) -> Inputs:
        """Return some of the RoIs."""
        return Inputs(self.x[chosen], self.labels[chosen], self.targets[chosen], self.rois[chosen])


def random_inputs(labels: list[int], seed: int = 0) -> Inputs:
    """Return RoIs with the given labels, ``K`` for background; features as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    n = len(labels)
    corner = torch.rand(n, 2, generator=generator) * 40
    rois = torch.cat([torch.zeros(n, 1), corner, corner + 10 + torch.rand(n, 2, generator=generator) * 30], dim=1)
    x = torch.rand(n, D, generator=generator) * (torch.rand(n, D, generator=generator) > 0.3)
    return Inputs(x, torch.tensor(labels, dtype=torch.long), torch.randn(n, 4, generator=generator), rois)


def box_batch(head: BoxHead, inputs: Inputs, x: Tensor | None = None) -> BoxBatch:
    """Return the batch after the head's forward and its ordinary box loss (average factor: all RoIs)."""
    x = inputs.x if x is None else x
    predictions = head.fc_reg(x)
    positive = inputs.labels < head.num_classes
    own = predictions.view(len(x), head.num_classes, 4)[positive, inputs.labels[positive]]
    if head.reg_decoded_bbox:
        own = head.bbox_coder.decode(inputs.rois[positive, 1:], own)
    weights = positive[:, None].float().expand(-1, 4)
    loss = head.loss_bbox(own, inputs.targets[positive], weights[positive], avg_factor=len(x))
    return BoxBatch(
        features=x,
        cls_score=head.fc_cls(x),
        labels=inputs.labels,
        label_weights=x.new_ones(len(x)),
        bbox_feats=x[:, :, None, None],
        rois=inputs.rois,
        losses={"loss_bbox": loss},
        bbox_pred=predictions,
        bbox_targets=inputs.targets,
        bbox_weights=weights,
    )


def mask_batch(head: MaskHead, labels: Tensor, seed: int = 0, size: int = 4) -> MaskBatch:
    """Return a mask batch for the positive RoIs' labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(len(labels), head.conv_logits.in_channels, size, size, generator=generator)
    targets = (torch.rand(len(labels), size, size, generator=generator) > 0.5).float()
    return MaskBatch(features, head.conv_logits(features), targets, labels)


def part(num_classes: int = K, **options: Any) -> CRAT:
    """Return the part with made-up counts: label 0 is the most frequent class."""
    images = [1000, 400, 90, 20, 8, 2][:num_classes] + [1] * (num_classes - 6)
    return CRAT(num_classes, images, [3 * n for n in images], **options)

"""Props-GT: proposals that carry the label of the object they overlap, an upper bound for any classifier.

Named in SimCal's paper (arXiv 2007.11978), whose code is unpublished. A proposal with IoU >= 0.5 with an object gets
score 1 for the class of the object it overlaps most, any other proposal is background; boxes, masks and the
suppression of duplicates stay the detector's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

MIN_IOU = 0.5


def oracle_scores(boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, num_classes: int) -> Tensor:
    """Return scores ``(N, K + 1)`` float32 of 0 and 1, background last.

    Args:
        boxes: ``(N, 4)`` float proposals, xyxy.
        gt_boxes: ``(G, 4)`` float objects, xyxy in the same pixels.
        gt_labels: ``(G,)`` int64.
        num_classes: Foreground classes K.
    """
    labels = torch.full((len(boxes),), num_classes, dtype=torch.int64, device=boxes.device)
    if len(gt_boxes) and len(boxes):
        iou, which = bbox_overlaps(boxes, gt_boxes).max(dim=1)
        labels = torch.where(iou >= MIN_IOU, gt_labels[which], labels)
    return torch.nn.functional.one_hot(labels, num_classes + 1).float()


class OracleLabels:
    """Makes the scores of an image's proposals from its ground truth; crowds are no objects.

    Args:
        dataset: :class:`ltpipe.engine.dataset.StoreDataset`.
    """

    def __init__(self, dataset: Any) -> None:
        self._store, self._num_classes = dataset.store, dataset.num_classes
        order = dataset.split.order[: self._num_classes].tolist()
        rank = {category: label for label, category in enumerate(order)}
        # Classes that the detector does not know yet get no label, so their objects are nobody's.
        self._label = np.array([rank.get(c, -1) for c in self._store.category_ids.tolist()], dtype=np.int64)
        self._row = {image: row for row, image in enumerate(self._store.image_ids.tolist())}

    def __call__(self, found: InstanceData) -> Iterator[Tensor]:
        """Yield the only set of scores ``(n, K + 1)`` of ``priors`` ``(n, 4)``, xyxy in pixels of the network input."""
        boxes = found.priors
        gt_boxes, gt_labels = self.objects(int(found.img_id), found.scale_factor)
        yield oracle_scores(boxes, gt_boxes.to(boxes), gt_labels.to(boxes.device), self._num_classes)

    def objects(self, image_id: int, scale_factor: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Return boxes ``(G, 4)`` xyxy in pixels of the network input, and labels ``(G,)``, of an image.

        Args:
            image_id: Image id.
            scale_factor: Horizontal and vertical factor from the original image to the network input.
        """
        row = self._row[image_id]
        part = slice(self._store.image_ptr[row], self._store.image_ptr[row + 1])
        labels = self._label[self._store.ann_category[part]]
        kept = (labels >= 0) & ~self._store.ann_iscrowd[part]
        boxes = self._store.ann_bbox[part][kept]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        scaled = corners * np.tile(np.asarray(scale_factor, float), 2)
        return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(labels[kept])

"""A two-stage detector that is not trained any more: its proposals and RoI features, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from numpy.typing import NDArray
from torch import Tensor, nn

from ltpipe.methods.box_layers import Level, hidden_layers, stored_features


class FrozenDetector:
    """A detector in evaluation mode and the images it is run on.

    Args:
        model: Two-stage detector on its device.
        dataset: :class:`ltpipe.engine.dataset.AnnotatedDataset`.
    """

    def __init__(self, model: nn.Module, dataset: Any) -> None:
        self.model: Any = model.eval()
        self.dataset = dataset

    def batch(self, row: int, flip: bool) -> dict[str, Any]:
        """Return the preprocessed batch of one image."""
        item = self.dataset[(row, flip)]
        batch = {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}
        return self.model.data_preprocessor(batch, False)

    @torch.no_grad()
    def proposals(self, row: int, flip: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return ground-truth boxes ``(G, 4)``, labels ``(G,)`` and proposals ``(S, P, 4)`` with the training settings.

        Class-wise cascades refine a box by its best-scoring class, as at test time.
        """
        batch = self.batch(row, flip)
        samples = batch["data_samples"]
        feats = self.model.extract_feat(batch["inputs"])
        outputs = self.model.rpn_head(feats)
        found = self.model.rpn_head.predict_by_feat(
            *outputs,
            batch_img_metas=[s.metainfo for s in samples],
            cfg=self.model.train_cfg.rpn_proposal,
            rescale=False,
        )[0]
        gt = samples[0].gt_instances
        proposals = torch.stack(list(self._refined(feats, found.bboxes, samples[0].metainfo)))
        return get_box_tensor(gt.bboxes).cpu().numpy(), gt.labels.cpu().numpy(), proposals.cpu().numpy()

    def _refined(self, feats: tuple[Tensor, ...], boxes: Tensor, meta: dict[str, Any]) -> Iterator[Tensor]:
        """Yield the boxes ``(P, 4)`` that every stage sees."""
        heads, pool = self.model.roi_head.bbox_heads, self.model.roi_head.pooler(feats)
        for stage, head in enumerate(heads):
            yield boxes
            if stage + 1 < len(heads):
                for_cls, for_reg = head.predictor_inputs(pool(stage, bbox2roi([boxes])))
                scores, deltas = head.fc_cls(for_cls), head.fc_reg(for_reg)
                scores = head.loss_cls.get_activation(scores) if head.custom_activation else scores
                boxes = get_box_tensor(head.regress_by_class(boxes, scores[:, :-1].argmax(dim=1), deltas, meta))

    @property
    def stages(self) -> int:
        """Stages of the RoI head, one outside cascades."""
        return len(self.model.roi_head.bbox_heads)

    @property
    def positive_ious(self) -> list[float]:
        """Smallest overlap of a positive RoI in every stage: 0.5, in a cascade that of its training."""
        cfg = self.model.roi_head.train_cfg
        return [0.5] if self.stages == 1 else [stage.assigner.pos_iou_thr for stage in cfg]

    @torch.no_grad()
    def pool(
        self, row: int, flip: bool, boxes: Mapping[int, NDArray[np.float32]], level: Level = "roi"
    ) -> dict[int, Tensor]:
        """Return by stage the features ``(n, *shape_at(level))`` of its boxes ``(n, 4)``.

        Args:
            row: Store row of the image.
            flip: Whether it is mirrored.
            boxes: By stage, xyxy in pixels of the network input.
            level: What is stored.
        """
        feats = self.model.extract_feat(self.batch(row, flip)["inputs"])
        heads, pool = self.model.roi_head.bbox_heads, self.model.roi_head.pooler(feats)
        found = {}
        for stage, of_stage in boxes.items():
            rois = bbox2roi([torch.from_numpy(of_stage).to(feats[0].device)])
            found[stage] = stored_features(heads[stage], pool(stage, rois), level)
        return found

    def most_boxes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest number of boxes, objects and proposals, of each of these images ``(n,)``."""
        store = self.dataset.view.store
        objects = np.bincount(store.ann_image, minlength=len(store.image_ids))[rows]
        return objects + int(self.model.train_cfg.rpn_proposal.max_per_img)

    def shape_at(self, level: Level) -> tuple[int, ...]:
        """Return the shape of one row: ``(c, h, w)`` of pooled features, ``(d,)`` of a hidden layer."""
        head = self.model.roi_head.bbox_heads[0]
        if level == "roi":
            return (head.in_channels, *head.roi_feat_size)
        return (hidden_layers(head)[0].out_features if level == "fc1" else head.fc_cls.in_features,)

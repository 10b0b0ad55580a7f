"""Balanced group softmax (BAGS): classes compete only with classes of similar frequency.

Paper: Li et al., "Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax", CVPR
2020, arXiv 2006.10408; repositories FishYuLi/BalancedGroupSoftmax and tztztztztz/eqlv2 (``GroupSoftmax``). The
equations are in :mod:`ltpipe.methods.bags.functions`. Acts on the classification loss and the scores of the box head,
which then has K + G + 1 outputs for G groups; needs training instance counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmdet.models.losses import accuracy
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.frequency import BIN_EDGES
from ltpipe.methods.bags.functions import (
    draw_others,
    group_class_weights,
    group_labels,
    group_layout,
    group_losses,
    group_scores,
    layout_from_groups,
)
from ltpipe.methods.calibration import LossCalibrator
from ltpipe.methods.seeded_draws import SeededDraws
from ltpipe.registry import method


@method("loss", "group_softmax")
class GroupSoftmaxLoss(SeededDraws):
    """Balanced group softmax loss; label weights and ``avg_factor`` are ignored, as in both repositories.

    The layout is stored with the weights, and weights of another layout are refused.

    Args:
        num_classes: Foreground classes K.
        instance_counts: Training instances per class.
        edges: Instance counts at which a new group begins; 10, 100, 1000 in the paper.
        beta: Others drawn per member of a group; 8 in the paper.
        loss_weight: Factor of the loss; 1 in both repositories.
        reweight: Weight members by inverse frequency inside their group; the original's ``Reweight`` variant.
        seed: Seed of the draw of others, which also depends on the iteration and the process.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    softmax_scores = False
    rows_in_label_order = False  # members stand in label order inside their group
    restarts_per_phase = True
    class_rows: ClassVar[dict[str, Any]] = {"label_map": 1}
    label_map: Tensor
    channel: Tensor
    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        instance_counts: Sequence[int],
        edges: Sequence[int] = BIN_EDGES,
        beta: float = 8.0,
        loss_weight: float = 1.0,
        reweight: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        layout = group_layout(instance_counts, edges)
        self.num_classes = num_classes
        self.beta, self.loss_weight, self.reweight = beta, loss_weight, reweight
        self.sizes = layout.sizes.tolist()
        self.register_buffer("label_map", torch.from_numpy(layout.label_map))
        self.register_buffer("channel", torch.from_numpy(layout.channel), persistent=False)
        self.register_buffer("class_weights", group_class_weights(instance_counts, layout).float(), persistent=False)
        self.start_draws(seed)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the scalar loss.

        Args:
            cls_score: ``(N, K + G + 1)`` float.
            label: ``(N,) int64``, background K.
            weight: Ignored.
            avg_factor: Ignored.
            reduction_override: None or ``mean``; the groups have averages of their own.
            **kwargs: Ignored.
        """
        assert reduction_override in (None, "mean"), "every group has its own average"
        in_groups = group_labels(label, self.label_map)
        shape, device = (in_groups.shape[0] - 1, in_groups.shape[1]), in_groups.device
        noise = torch.rand(shape, generator=self.generator(device), device=device)
        weights: Tensor = draw_others(in_groups, self.beta, noise)
        if self.reweight:
            weights = weights * self.class_weights[:, label]
        losses = group_losses(cls_score, in_groups, weights, self.sizes)
        return self.loss_weight * losses.sum()

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the number of classifier outputs, K + G + 1."""
        assert num_classes == self.num_classes, "the head and the loss must know the same classes"
        return sum(self.sizes)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return probabilities ``(N, K + 1)``, background last."""
        return group_scores(cls_score, self.channel, self.sizes)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the accuracy (percent) of foreground against background, and of the classes among foreground rows."""
        foreground = labels < self.num_classes
        best = self.get_activation(cls_score)[:, :-1]
        return {
            "acc_objectness": accuracy(cls_score[:, -2:], (~foreground).long()),
            "acc_classes": accuracy(best[foreground], labels[foreground]),
        }

    @staticmethod
    def reorder_head(head: Mapping[str, Tensor], positions: Sequence[int]) -> dict[str, Tensor]:
        """Return the tensors of a box head that change when label ``j`` becomes the old label ``positions[j]``.

        Args:
            head: State of the box head, ``loss_cls.*`` and ``fc_cls.*`` among it.
            positions: Old labels in the new order.
        """
        table = head.get("loss_cls.label_map")
        if table is None:
            return {}  # of another loss: its rows are in label order
        groups = (table[:-1, :-1] > 0).int().argmax(dim=0)
        old = layout_from_groups(groups.numpy(), len(table) - 1)
        new = layout_from_groups(groups[list(positions)].numpy(), len(table) - 1)
        rows = torch.arange(old.num_channels)
        rows[torch.from_numpy(new.channel)] = torch.from_numpy(old.channel[[*positions, len(groups)]])
        classifier = {key: value[rows] for key, value in head.items() if key in ("fc_cls.weight", "fc_cls.bias")}
        return {**classifier, "loss_cls.label_map": torch.from_numpy(new.label_map)}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}label_map")
        if stored is not None and not torch.equal(stored.cpu(), self.label_map.cpu()):
            raise UserError(
                "the classifier was trained with other groups",
                where=f"{prefix}label_map of the checkpoint",
                got=f"{stored.shape[0] - 1} groups of {stored.shape[1] - 1} classes",
                fix="use the instance counts and edges of its training",
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def box_loss(bbox_head: Any, deltas: Tensor, labels: Tensor, boxes: Tensor, matched: Tensor) -> Tensor:
    """Return the box head's own regression loss, summed over foreground rows and divided by the number of all rows.

    Args:
        bbox_head: mmdet's box head.
        deltas: ``(n, 4K)`` or ``(n, 4)`` float, its predictions.
        labels: ``(n,)`` int64, background K.
        boxes: ``(n, 4)`` float xyxy in pixels of the network input.
        matched: ``(n, 4)`` float ground truths of the foreground rows, same pixels.
    """
    foreground = labels < bbox_head.num_classes
    targets = matched if bbox_head.reg_decoded_bbox else bbox_head.bbox_coder.encode(boxes, matched)
    weights = foreground[:, None].expand(-1, 4).to(deltas)
    rois = F.pad(boxes, (1, 0))
    found: Tensor = bbox_head.loss(None, deltas, rois, labels, None, targets.to(deltas), weights)["loss_bbox"]
    return found


@method("calibrator", "bags")
class BAGS(LossCalibrator):
    """Grouped classifier trained on the frozen detector, instead of its own.

    With the whole box head its layers and its regressor go on from the detector's own weights and are trained with the
    detector's box loss as well; backbone, RPN and mask head stay as they are.

    Args:
        num_classes: Foreground classes K.
        instance_counts: Training instances per class.
        trained: ``classifier`` as published, or ``box_head``: all of it (the repository's ``selectp`` 1 and 2).
        edges: Instance counts at which a new group begins; 10, 100, 1000 in the paper.
        beta: Others drawn per member of a group; 8 in the paper.
        reweight: Weight members by inverse frequency inside their group; the original's ``Reweight`` variant.
        seed: Seed of the draw of others.
    """

    needs_features = True
    rows_in_label_order = False
    lowest_level = {"trained": {"classifier": "last", "box_head": "roi"}}

    def __init__(
        self,
        num_classes: int,
        instance_counts: Sequence[int],
        trained: Literal["classifier", "box_head"] = "classifier",
        edges: Sequence[int] = BIN_EDGES,
        beta: float = 8.0,
        reweight: bool = False,
        seed: int = 0,
    ) -> None:
        options = {
            "num_classes": num_classes,
            "instance_counts": [int(n) for n in instance_counts],
            "edges": list(edges),
            "beta": beta,
            "reweight": reweight,
            "seed": seed,
        }
        super().__init__(num_classes, GroupSoftmaxLoss, options)
        self.trains_boxes = trained == "box_head"

    def initialise(self, bbox_head: Any) -> None:
        """Make the new classifier, N(0, 0.01) with zero bias as in the repository; copy what else is trained."""
        classifier = nn.Linear(bbox_head.fc_cls.in_features, self.loss_cls.get_cls_channels(self.num_classes))
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)
        if self.trains_boxes:
            loss, self.head, self.reads = self.loss_cls, deepcopy(bbox_head).requires_grad_(True), "roi"
            self.head.loss_cls = loss
        self.head.fc_cls = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, K + G + 1)`` of what is read: the last hidden layer after its ReLU, or pooled features."""
        if not self.trains_boxes:
            return super().forward(x)
        logits: Tensor = self.head(x)[0]
        return logits

    def train_losses(self, x: Tensor, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return classifier outputs and the group softmax loss, with the whole box head plus its box loss."""
        if not self.trains_boxes:
            return super().train_losses(x, labels)
        cls_score, deltas = self.head(x)
        return cls_score, self.loss(cls_score, labels) + box_loss(self.head, deltas, labels, *boxes)

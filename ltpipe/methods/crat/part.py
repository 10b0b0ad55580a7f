"""CRAT: cross-class gradient transfusing for class-wise boxes and masks.

Source: repository twangnh/CRAT (two code states: presets ``v1`` and ``v2``). A positive RoI ``n`` of class ``y`` also
trains the box regressors and mask filters of the other classes ``i``, as far as they use the same features:

* class statistic, squared gradient of the box loss: ``F_i <- (1 - a) F_i + a (dL_box / dW_i)^2``
* sample statistic, from its plain L1 loss ``l_n``: ``f_n = (dl_n / dW_{y_n})^2``
* weights ``w_{n,i} = softmax_{i != y_n}(cos(f_n, F_i) / tau)``, without gradient
* ``L_box_trans = 0.001 sum_n sum_i [F_i != 0] w_{n,i} |p_{n,i} - t_n|_1``
* ``L_mask_trans = 0.01 sum_n sum_i w_{n,i} mean BCE(z_{n,i}, T_n)``

Acts on the box and mask heads during training, next to any classification loss; nothing changes at test time. Needs
class-wise regression, class-wise masks and a plain linear box regressor. Needs no counts unless ``source`` or
``target`` name frequency groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.frequency import frequency_groups
from ltpipe.methods.box_layers import is_plain_linear, rectifies
from ltpipe.methods.crat.bank import FisherBank, SampleGradients
from ltpipe.methods.crat.functions import (
    box_transfer_loss,
    class_affinity,
    classes_of,
    effective_sources,
    mask_transfer_loss,
    nearest_sources,
    prune_weights,
    transfer_weights,
)
from ltpipe.methods.head_parts import BoxBatch, HeadPart, MaskBatch
from ltpipe.registry import method

PRESETS: dict[str, dict[str, Any]] = {
    "persample": dict(momentum=0.01, decay_absent=False, sample_stat="squared", temperature=0.05),
    "v1": dict(momentum=0.1, decay_absent=True, sample_stat="squared", temperature=0.1),
    "v2": dict(momentum=0.01, decay_absent=False, sample_stat="first_signed", temperature=0.05),
}
# A sum over 1024 RoIs with 0.001 and over 256 positives with 0.01 weighs as much as these means.
LOSS_WEIGHTS = {"sum": (0.001, 0.01), "avg_factor": (1.024, 2.56)}
MASK_TEMPERATURE = 1.0  # of the mask branch's own weights, in disabled code of both states
NEIGHBOURS = 5  # classes named beside each class in the report


@method("part", "crat")
class CRAT(HeadPart):
    """Transfers box and mask gradients from the samples of one class to the last layers of the others.

    Where an option is None, the preset decides. The code of ``v1`` and ``v2`` is that of the repository's two states;
    ``persample`` is the newer state with the older one's per-sample statistic. Published results do not exist.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        preset: Code state whose numbers are used: ``persample`` (ours), ``v1`` or ``v2``.
        momentum: Weight of a batch in the running statistic (v1: 0.1, others: 0.01).
        decay_absent: Let the statistic of absent classes decay, which erases rare classes (v1: yes).
        sample_stat: ``squared``: squared gradient of each sample; ``first_signed``: signed gradient of the batch's
            first positive for all, so that losses depend on the order of the RoIs (v2).
        class_stat: ``batch``: square the gradient summed over a class (both code states); ``per_sample``: average the
            squared gradients of its samples.
        temperature: Temperature of the softmax over classes (v1: 0.1, others: 0.05).
        box_weight: Weight of the box transfer loss; None: 0.001, or 1.024 with ``avg_factor``.
        mask_weight: Weight of the mask transfer loss; None: 0.01, or 2.56 with ``avg_factor``.
        normalize: ``sum`` over samples (both code states), or divide by ``avg_factor``: the sampled RoIs for boxes,
            the positives for masks, which makes the balance independent of the batch size.
        mask_weights_from: Statistic behind the mask weights: the ``box`` branch's (both code states) or the ``mask``
            branch's own.
        seen_mask_in_mask: Leave classes without a statistic out of the mask transfer loss, as in the box transfer loss.
        exclude_unseen: Leave classes without a statistic out of the softmax.
        threshold: Drop samples whose largest weight is below it (0.1 in disabled code of v2).
        top_k: Keep the largest weights of each sample; bounds the memory of the mask loss.
        source: Classes whose samples give: letters of the frequency groups r, c, f by training images, or a condition
            on training instances such as ``>=100``.
        target: Classes that receive, written alike.
        detach_features: Train the last layers only, not the features below.
        sync: Combine the statistics of all processes.
        class_frequency: Frequency group per class, label order; None: by image counts.
    """

    source: Tensor
    target: Tensor

    needs_class_wise = True
    needs_same_rois = {"mask_weights_from": ["box"]}

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        preset: Literal["persample", "v1", "v2"] = "persample",
        momentum: float | None = None,
        decay_absent: bool | None = None,
        sample_stat: Literal["squared", "first_signed"] | None = None,
        class_stat: Literal["batch", "per_sample"] = "batch",
        temperature: float | None = None,
        box_weight: float | None = None,
        mask_weight: float | None = None,
        normalize: Literal["sum", "avg_factor"] = "sum",
        mask_weights_from: Literal["box", "mask"] = "box",
        seen_mask_in_mask: bool = False,
        exclude_unseen: bool = False,
        threshold: float | None = None,
        top_k: int | None = None,
        source: str = "rcf",
        target: str = "rcf",
        detach_features: bool = False,
        sync: bool = True,
        class_frequency: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        given = dict(momentum=momentum, decay_absent=decay_absent, sample_stat=sample_stat, temperature=temperature)
        chosen = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
        self.num_classes = num_classes
        self.sample_stat, self.temperature = chosen["sample_stat"], chosen["temperature"]
        self.normalize = normalize
        self.box_weight = LOSS_WEIGHTS[normalize][0] if box_weight is None else box_weight
        self.mask_weight = LOSS_WEIGHTS[normalize][1] if mask_weight is None else mask_weight
        self.seen_mask_in_mask, self.exclude_unseen = seen_mask_in_mask, exclude_unseen
        self.threshold, self.top_k, self.detach_features = threshold, top_k, detach_features
        frequency = frequency_groups(image_counts) if class_frequency is None else class_frequency
        for name, choice in (("source", source), ("target", target)):
            mask = torch.tensor(classes_of(choice, frequency, instance_counts), dtype=torch.bool)
            self.register_buffer(name, mask, persistent=False)
        averaging = (chosen["momentum"], chosen["decay_absent"], class_stat, sync)
        self.box_bank = FisherBank(num_classes, 4, *averaging)
        self.mask_bank = FisherBank(num_classes, 1, *averaging) if mask_weights_from == "mask" else None
        # Weights of the current iteration, (P, K): the mask head's RoIs are the box head's positives, in their order.
        self.box_transfer: Tensor | None = None

    def check_head(self, bbox_head: Any) -> None:
        """Refuse box heads whose regressor is not a plain linear layer on the classifier's features."""
        own = ("cls_convs", "cls_fcs", "reg_convs", "reg_fcs")
        if any(len(getattr(bbox_head, layers, ())) for layers in own) or not is_plain_linear(bbox_head.fc_reg):
            raise UserError(
                "crat needs a plain linear box regressor on the classifier's features",
                where="model.roi_head.bbox_head",
                got=bbox_head.fc_reg,
                allowed="reg_predictor_cfg of type Linear, no layers of either branch's own",
                fix="use a box head with shared layers only, or take crat out of `parts`",
            )

    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        """Update the box statistic (in training mode); return ``loss_bbox_trans`` and two values for the log.

        ``crat_largest_weight`` is the mean over samples of their largest weight, ``crat_classes_seen`` the share of
        classes with a statistic.

        Raises:
            UserError: The box head is class-agnostic, or its regressor is not a plain linear layer on the
                classifier's features.
        """
        self._check_box_head(head, batch)
        assert batch.bbox_pred is not None and batch.bbox_targets is not None and batch.bbox_weights is not None
        with torch.autocast(batch.features.device.type, enabled=False):
            rows = ((batch.labels >= 0) & (batch.labels < self.num_classes)).nonzero().squeeze(1)
            labels = batch.labels[rows]
            features = batch.features[rows].float()
            if not rectifies(head.fc_cls):
                # Such classifiers read the features before the rectifier; the regressor always reads them after.
                features = features.relu()
            if self.detach_features:
                deltas = head.fc_reg(features.detach())
            else:
                deltas = batch.bbox_pred[rows].float()
            priors, targets = batch.rois[rows, 1:].float(), batch.bbox_targets[rows].float()
            own = deltas.view(len(rows), self.num_classes, 4)[torch.arange(len(rows), device=rows.device), labels]
            own_gradients = _box_gradients(
                head, own, priors, targets, batch.bbox_weights[rows].float(), len(batch.labels)
            )
            grads = SampleGradients(features.detach(), *own_gradients)
            if self.training:
                self.box_bank.update(grads, labels)
            self.box_transfer = weights = self._weights(self.box_bank, grads, labels, self.temperature)
            seen = self.box_bank.seen()
            boxes = _decode(head, priors, deltas).view(len(rows), self.num_classes, 4)
            loss = self.box_weight * box_transfer_loss(boxes, targets, weights * seen)
            if self.normalize == "avg_factor":
                loss = loss / max(len(batch.labels), 1)
        return {
            "loss_bbox_trans": loss,
            "crat_largest_weight": weights.amax(dim=1).sum() / max(len(rows), 1),
            "crat_classes_seen": seen.float().mean(),
        }

    def mask_losses(self, head: Any, batch: MaskBatch) -> dict[str, Tensor]:
        """Return ``loss_mask_trans``, with the weights of the preceding :meth:`box_losses` or the mask branch's own.

        Raises:
            UserError: The mask head is class-agnostic.
        """
        if batch.mask_preds.shape[1] != self.num_classes:
            raise _class_agnostic("mask", batch.mask_preds.shape[1], self.num_classes)
        assert batch.features is not None, "mask heads with filters of all classes have a predictor"
        with torch.autocast(batch.features.device.type, enabled=False):
            logits, targets = batch.mask_preds, batch.targets.float()
            if self.mask_bank is None:
                bank, weights, self.box_transfer = self.box_bank, self.box_transfer, None
                if weights is not None and batch.kept is not None:
                    weights = weights[batch.kept]
                assert weights is not None and len(weights) == len(logits), "mask RoIs are not the box head's positives"
            else:
                bank = self.mask_bank
                grads = _mask_gradients(head, batch.features.float(), logits, targets, batch.labels)
                if self.training:
                    bank.update(grads, batch.labels)
                weights = self._weights(bank, grads, batch.labels, MASK_TEMPERATURE)
            if self.seen_mask_in_mask:
                weights = weights * bank.seen()
            if self.detach_features:
                logits = head.conv_logits(batch.features.detach().to(head.conv_logits.weight.dtype))
            loss = self.mask_weight * mask_transfer_loss(logits, targets, weights, self.top_k)
            if self.normalize == "avg_factor":
                loss = loss / max(len(logits), 1)
        return {"loss_mask_trans": loss}

    def class_affinity(self) -> dict[str, Tensor]:
        """Return the cosines between the box statistics of the classes; neighbours are classes that give."""
        seen = self.box_bank.seen()
        if not seen.any():
            return {}
        cosine = class_affinity(self.box_bank.energy)
        classes = torch.arange(self.num_classes, device=cosine.device)
        nearest, similarity = nearest_sources(cosine, classes, self.source & seen, NEIGHBOURS)
        weights = transfer_weights(cosine, classes, self.temperature, self._receivers(self.box_bank))
        effective = effective_sources(weights)
        return {"cosine": cosine, "nearest": nearest, "similarity": similarity, "effective": effective}

    def _receivers(self, bank: FisherBank) -> Tensor:
        return self.target & bank.seen() if self.exclude_unseen else self.target

    def _weights(self, bank: FisherBank, grads: SampleGradients, labels: Tensor, temperature: float) -> Tensor:
        cosine = bank.cosine(grads, self.sample_stat)
        weights = transfer_weights(cosine, labels, temperature, self._receivers(bank))
        return prune_weights(weights * self.source[labels, None], self.threshold, self.top_k)

    def _check_box_head(self, head: Any, batch: BoxBatch) -> None:
        if batch.bbox_pred is None or batch.bbox_pred.shape[1] != 4 * self.num_classes:
            got = None if batch.bbox_pred is None else batch.bbox_pred.shape[1]
            raise _class_agnostic("box", got, 4 * self.num_classes)
        self.check_head(head)


def _decode(head: Any, priors: Tensor, deltas: Tensor) -> Tensor:
    """Return what the box loss compares: deltas, or boxes (xyxy) for heads that regress decoded boxes."""
    return get_box_tensor(head.bbox_coder.decode(priors, deltas)) if head.reg_decoded_bbox else deltas


def _box_gradients(
    head: Any, own: Tensor, priors: Tensor, targets: Tensor, weights: Tensor, num_rois: int
) -> tuple[Tensor, Tensor]:
    """Gradients ``(P, 4)`` at the own class's deltas: of the configured box loss, and of each sample's L1 loss."""
    with torch.enable_grad():
        leaf = own.detach().requires_grad_()
        boxes = _decode(head, priors, leaf)
        batch_loss = head.loss_bbox(boxes, targets, weights, avg_factor=num_rois)
        (of_batch,) = torch.autograd.grad(batch_loss, leaf, retain_graph=True)
        (of_sample,) = torch.autograd.grad((boxes - targets).abs().sum(), leaf)
    return of_batch, of_sample


def _mask_gradients(head: Any, features: Tensor, logits: Tensor, targets: Tensor, labels: Tensor) -> SampleGradients:
    """Gradients with respect to the own class's mask filter: ``v`` is summed over the mask, ``u`` is 1."""
    with torch.enable_grad():
        leaf = logits[torch.arange(len(labels), device=labels.device), labels].detach().float().requires_grad_()
        # The class-agnostic form of the configured loss: one channel per sample, already the own class's.
        loss = head.loss_mask(leaf[:, None], targets, torch.zeros_like(labels)).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
    filters = torch.einsum("pchw,phw->pc", features.detach(), slope)
    ones = filters.new_ones(len(labels), 1)
    return SampleGradients(filters, ones, ones)


def _class_agnostic(branch: str, got: int | None, expected: int) -> UserError:
    return UserError(
        f"crat needs a class-wise {branch} head",
        where=f"model.roi_head.{branch.replace('box', 'bbox')}_head",
        got=f"{got} output channels",
        allowed=f"{expected} output channels",
        fix="set reg_class_agnostic=False and class_agnostic=False in the detector, or take crat out of `parts`",
    )

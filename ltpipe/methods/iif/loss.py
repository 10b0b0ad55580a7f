"""IIF: inverse image frequency (Alexandridis et al., IEEE TIP 2023, arXiv 2209.04861; code ``kostas1515/iif``).

Every logit is multiplied by a fixed class weight that grows with the rarity of the class, before the softmax, in
training and at test time; the background weight is 1:

    loss_i = -log softmax(w * z_i)[y_i],    score = softmax(w * z)

Acts as ``loss_cls`` with ``K + 1`` channels. Needs image counts and the number of training images, or instance counts
("IOF"); :mod:`ltpipe.methods.iif.weights` holds the formulas.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from mmdet.models.losses import accuracy
from mmdet.models.losses.cross_entropy_loss import cross_entropy
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.iif.class_tables import check_table, read_table
from ltpipe.methods.iif.weights import describe, iif_weights, parse_variant, with_background
from ltpipe.registry import method

logger = logging.getLogger(__name__)


def iif_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """Return ``(N, C)`` float32 logits times class weights.

    Args:
        logits: ``(N, C)`` float of any precision.
        weights: ``(C,)`` float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return logits.float() * weights


def iif_scores(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the scores ``softmax(w * z)``, ``(N, C)`` float32.

    Args:
        logits: ``(N, C)`` float classifier output, background last.
        weights: ``(C,)`` float32, background last.
    """
    return iif_logits(logits, weights).softmax(dim=-1)


def class_weights(
    num_classes: int,
    image_counts: Sequence[int],
    instance_counts: Sequence[int],
    num_images: int | None,
    variant: str,
    count: str | None,
    *,
    bg_weight: float = 1.0,
    table: str | None = None,
    class_names: Sequence[str] | None = None,
    class_ranks: Sequence[int] | None = None,
    **options: Any,
) -> Tensor:
    """Return the weights of all channels, ``(K + 1,)`` float32, background last.

    Args:
        num_classes: ``K``.
        image_counts: ``(K,)`` training images per class.
        instance_counts: ``(K,)`` training instances per class.
        num_images: Training images, annotated or not.
        variant: Formula or its alias.
        count: ``image`` or ``instance``.
        bg_weight: Weight of the background.
        table: CSV file to take the weights from.
        class_names: Names of the classes, to be compared with those in the table.
        class_ranks: Row of each class in the table; None: the same order.
        **options: Of :func:`ltpipe.methods.iif.weights.iif_weights`.

    Raises:
        UserError: Counts are missing or do not fit, or the table is another data set's.
    """
    variant, count = parse_variant(variant, count)
    if not len(image_counts) == len(instance_counts) == num_classes:
        raise UserError(
            "IIF needs one image and one instance count per class",
            got=f"{num_classes} classes, {len(image_counts)} image and {len(instance_counts)} instance counts",
        )
    if table is not None:
        read = read_table(table)
        rows = check_table(
            read, image_counts, instance_counts, num_images=num_images, names=class_names, ranks=class_ranks
        )
        weights = read.column(variant, count)[rows]
    elif count == "image" and num_images is None:
        raise UserError(
            "IIF does not know the number of training images",
            where="num_images",
            fix="give the number of images in the training annotations (annotated or not), or set count: instance",
        )
    else:
        per_class = {"image": image_counts, "instance": instance_counts}[count]
        total = int(np.sum(instance_counts)) if count == "instance" else int(num_images or 0)
        weights = iif_weights(per_class, total, variant, **options)
    logger.info("IIF %s on %s counts: weights %s (min / median / max)", variant, count, describe(weights))
    return torch.from_numpy(with_background(weights, bg_weight)).float()


@method("loss", "iif")
class IIFLoss(nn.Module):
    """Softmax cross entropy on logits weighted by inverse class frequency.

    The weights are a buffer outside the state dict: checkpoints have the keys of a plain detector.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        num_images: Images in the training annotations, annotated or not (LVIS v1: 100170); needed for ``count: image``.
        variant: Formula of the weights (published: raw; base10 with instance counts for the full recipe).
        count: Count images ("IIF") or instances ("IOF"); null: images, unless the variant is written ``<name>_obj``.
        bg_weight: Weight of the background (published: 1).
        min_weight: Raise smaller weights to this value; null: as published. Very frequent classes have weights below 0
            with ``rel`` and ``normit``.
        table: CSV file of the published tables to take the weights from; null: from the counts.
        class_names: Names of the classes, label order; compared with those in the table.
        class_ranks: Place of each class among all of the data set by ascending category id, the order of the tables;
            null: the labels are in that order.
        loss_weight: Factor of the loss.

    Raises:
        UserError: Counts are missing or do not fit, or the table is another data set's.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    weights: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        num_images: int | None = None,
        variant: Literal["raw", "smooth", "rel", "normit", "gombit", "base2", "base10"] = "raw",
        count: Literal["image", "instance"] | None = None,
        bg_weight: float = 1.0,
        min_weight: float | None = None,
        table: str | None = None,
        class_names: Sequence[str] | None = None,
        class_ranks: Sequence[int] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.loss_weight = num_classes, loss_weight
        self.variant, self.count = parse_variant(variant, count)
        weights = class_weights(
            num_classes,
            image_counts,
            instance_counts,
            num_images,
            variant,
            count,
            bg_weight=bg_weight,
            table=table,
            class_names=class_names,
            class_ranks=class_ranks,
            min_weight=min_weight,
        )
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: Literal["none", "mean", "sum"] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss, reduced as mmdet's cross entropy.

        Args:
            cls_score: ``(N, K + 1)`` float logits, background last.
            label: ``(N,)`` int64, background ``K``.
            weight: ``(N,)`` float label weights.
            avg_factor: Divisor of the sum.
            reduction_override: ``none`` (a value per RoI), ``mean`` (default) or ``sum``.
            **kwargs: Not used.

        Raises:
            ValueError: ``sum`` with an ``avg_factor``.
        """
        logits = iif_logits(cls_score, self.weights)
        reduction = reduction_override or "mean"
        if not len(label) and reduction != "none":
            return logits.sum()
        with torch.autocast(cls_score.device.type, enabled=False):
            loss: Tensor = cross_entropy(logits, label, weight, reduction=reduction, avg_factor=avg_factor)
        return self.loss_weight * loss

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the channels of the classifier, ``K + 1``.

        Raises:
            UserError: The head has another number of classes.
        """
        if num_classes != self.num_classes:
            raise UserError(
                "IIF's weights are for another number of classes",
                where="roi_head.bbox_head.loss_cls.num_classes",
                got=self.num_classes,
                allowed=f"{num_classes}, as in the head",
            )
        return num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(N, K + 1)`` float32 of logits ``(N, K + 1)``."""
        return iif_scores(cls_score, self.weights)

    def shifted_activation(self, cls_score: Tensor, shift: Tensor | float) -> Tensor:
        """Return scores of logits that are shifted after they are weighted, ``softmax(w * z + shift)``.

        Args:
            cls_score: ``(N, K + 1)`` float logits.
            shift: ``(K + 1,)`` float32, or 0.
        """
        return (iif_logits(cls_score, self.weights) + shift).softmax(dim=-1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return ``acc_classes``, the percentage of RoIs whose best weighted logit is their label's."""
        return {"acc_classes": accuracy(iif_logits(cls_score, self.weights), labels)}

    def extra_repr(self) -> str:
        """Formula and weights, shown when the model is printed."""
        weights = describe(self.weights[:-1].cpu().numpy())
        return f"variant={self.variant}, count={self.count}, weights={weights}, background={float(self.weights[-1])}"

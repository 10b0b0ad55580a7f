"""Post-hoc IIF: the scores of a trained softmax detector with weighted logits, ``softmax(w * z)``.

The third mode of :mod:`ltpipe.methods.iif` (arXiv 2209.04861; classification code of ``kostas1515/iif``).
Acts at test time only. Needs image counts and the number of training images, or instance counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.base import Calibrator, State
from ltpipe.methods.iif import IIFLoss
from ltpipe.registry import method


@method("calibrator", "iif")
class IIFCalibrator(Calibrator):
    """IIF scores for a detector trained with plain softmax, without training anything.

    The detector's weights stay as they are; its classification loss becomes :class:`ltpipe.methods.iif.IIFLoss`, whose
    activation gives the scores.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        num_images: Images in the training annotations, annotated or not; needed for ``count: image``.
        variant: Formula of the weights (published for classification: smooth).
        count: Count images or instances; null: images, unless the variant is written ``<name>_obj``.
        bg_weight: Weight of the background.
        min_weight: Raise smaller weights to this value; null: as published.

    Raises:
        UserError: Counts are missing or do not fit.
    """

    needs_features = False
    needs_softmax = True

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
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options: dict[str, Any] = {
            "image_counts": [int(n) for n in image_counts],
            "instance_counts": [int(n) for n in instance_counts],
            "num_images": num_images,
            "variant": variant,
            "count": count,
            "bg_weight": bg_weight,
            "min_weight": min_weight,
        }
        self.iif = IIFLoss(num_classes, **self.options)

    def initialise(self, bbox_head: nn.Module) -> None:
        """Check that the detector has a softmax classifier.

        Raises:
            UserError: It has not.
        """
        loss = bbox_head.loss_cls
        if not isinstance(loss, CrossEntropyLoss) or loss.use_sigmoid:
            raise UserError(
                "post-hoc IIF needs a detector trained with softmax cross entropy",
                where="model.loss.type",
                got=type(loss).__name__,
                allowed="cross_entropy",
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``: the rows are the detector's own logits ``(n, K + 1)``."""
        return x

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(n, K + 1)`` float32 of logits ``(n, K + 1)``."""
        return self.iif.get_activation(cls_score)

    def merge(self, model: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], State]:
        """Replace the classification loss in the config of every box head; no weight changes."""
        merged = deepcopy(dict(model))
        heads = merged["roi_head"]["bbox_head"]
        for head in heads if isinstance(heads, list) else [heads]:
            head["loss_cls"] = {"type": "ltpipe.IIFLoss", "num_classes": self.num_classes, **deepcopy(self.options)}
        return merged, dict(state)

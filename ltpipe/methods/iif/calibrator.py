"""IIF for a trained detector: ``softmax(w * z)`` for its scores without training, or its classifier trained again.

Modes of :mod:`ltpipe.methods.iif.loss` (arXiv 2209.04861; ``kostas1515/iif``, classification code and ``decoup``
configs). Act on the classifier of the box head; the first at test time only. Need image counts and the number of
training images, or instance counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import rectifies
from ltpipe.methods.calibration import Calibrator, State, replace_classifier
from ltpipe.methods.iif.loss import IIFLoss
from ltpipe.methods.reductions import mean_over_processes
from ltpipe.registry import method


class _IIFScores(Calibrator):
    """Calibrated scores ``softmax(w * z)``.

    Args:
        num_classes: Foreground classes ``K``.
        image_counts: Training images per class, label order.
        instance_counts: Training instances per class, label order.
        num_images: Images in the training annotations, annotated or not; needed for ``count: image``.
        variant: Formula of the weights.
        count: Count images or instances; null: images, unless the variant is written ``<name>_obj``.
        bg_weight: Weight of the background.
        min_weight: Raise smaller weights to this value; null: as published.

    Raises:
        UserError: Counts are missing or do not fit.
    """

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

    def merged_loss(self) -> dict[str, Any]:
        """Return the config of the loss whose activation gives the scores."""
        return {"type": "ltpipe.IIFLoss", "num_classes": self.num_classes, **deepcopy(self.options)}

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(n, K + 1)`` float32 of logits ``(n, K + 1)``."""
        return self.iif.get_activation(cls_score)


@method("calibrator", "iif")
class IIFCalibrator(_IIFScores):
    """IIF scores for a detector trained with plain softmax, without training anything.

    The detector's weights stay as they are; its classification loss becomes
    :class:`ltpipe.methods.iif.loss.IIFLoss`, whose activation gives the scores.

    Args:
        variant: Formula of the weights (published for classification: smooth).
    """

    needs_features = False
    needs_cross_entropy = True
    work = "computed"

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

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Replace the classification loss in the config of every box head; no weight changes."""
        merged = deepcopy(dict(model))
        heads = merged["roi_head"]["bbox_head"]
        for head in heads if isinstance(heads, list) else [heads]:
            head["loss_cls"] = self.merged_loss()
        return merged, dict(state)


@method("calibrator", "iif_retrain")
class IIFRetraining(_IIFScores):
    """IIF in the classifier only: it goes on from the detector's own and is trained with the IIF loss, all else fixed.

    The published ``decoup`` configs do this on whole images in natural frequency; here the rows are those of the
    calibration plan.

    Args:
        variant: Formula of the weights (published: raw).
    """

    needs_softmax = True

    def initialise(self, bbox_head: Any) -> None:
        """Copy the detector's classifier."""
        self.fc_cls = deepcopy(bbox_head.fc_cls).requires_grad_(True)
        self.classifier = dict(bbox_head.cls_predictor_cfg)
        self.reads = "last" if rectifies(self.fc_cls) else "last_raw"

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, K + 1)``, background last."""
        logits: Tensor = self.fc_cls(x.float())
        return logits

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the IIF loss averaged over the rows of all processes."""
        return mean_over_processes(self.iif(cls_score, labels, reduction_override="none"))

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Put the classifier and the loss, whose activation gives the scores, in place of the detector's."""
        weights = {f"fc_cls.{key}": value for key, value in self.fc_cls.state_dict().items()}
        return replace_classifier(
            model, state, classifier=self.classifier, loss=self.merged_loss(), weights=weights, stage=stage
        )

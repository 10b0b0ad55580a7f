"""Parts of heads: extensions that a detector calls at fixed points of its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass
class BoxBatch:
    """One training batch of the box head, after its ordinary losses.

    Attributes:
        features: ``(N, d)`` float, input of the classifier.
        cls_score: ``(N, C)`` float, output of the classifier.
        labels: ``(N,)`` int64, 0..K-1 foreground, K background.
        label_weights: ``(N,)`` float.
        bbox_feats: ``(N, c, h, w)`` float, pooled RoI features.
        rois: ``(N, 5)`` float, batch index then xyxy in pixels of the network input.
        losses: Losses computed so far, by name.
        bbox_pred: ``(N, 4K)`` or ``(N, 4)`` float, box deltas, or None.
        bbox_targets: ``(N, 4)`` float regression targets, or None.
        bbox_weights: ``(N, 4)`` float, or None.
        objects: ``(N,)`` int64, which object of the batch a RoI is assigned to, counted over its images; -1 for
            background; or None.
        num_objects: Objects of the batch.
    """

    features: Tensor
    cls_score: Tensor
    labels: Tensor
    label_weights: Tensor
    bbox_feats: Tensor
    rois: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    bbox_pred: Tensor | None = None
    bbox_targets: Tensor | None = None
    bbox_weights: Tensor | None = None
    objects: Tensor | None = None
    num_objects: int = 0


@dataclass
class MaskBatch:
    """One training batch of the mask head, after its ordinary loss.

    Attributes:
        features: ``(P, c, h, w)`` float, input of the mask predictor (after the upsampling layer); None in mask heads
            that make their filters.
        mask_preds: ``(P, K or 1, h, w)`` float logits.
        targets: ``(P, h, w)`` float in {0, 1}.
        labels: ``(P,)`` int64 foreground labels.
        kept: Those of the box head's positives, bool, whose object has a mask and which are these; None: all.
        losses: Losses computed so far, by name.
    """

    features: Tensor | None
    mask_preds: Tensor
    targets: Tensor
    labels: Tensor
    kept: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class HeadPart(nn.Module):
    """Extension of a head, called at fixed points during training. Every call point does nothing by default.

    Parameters and buffers of a part live in the detector's ``state_dict`` under ``roi_head.parts.<i>``. A cascade has
    one per stage, ``roi_head.parts.<i>.<stage>``, which sees the heads of that stage and no whole images. A part must
    return the same loss keys on every process and in every iteration (a zero that touches the graph where it has
    nothing to add), because the training loop reduces them over processes.
    """

    # Class-wise parameters and buffers, see :mod:`ltpipe.methods.class_rows`.
    class_rows: ClassVar[dict[str, Any]] = {}
    # Whether its state starts anew with the class list of every incremental phase.
    restarts_per_phase: ClassVar[bool] = True
    # Whether both heads must have an output per class. The catalogue reads this and the next one from the class body.
    needs_class_wise: ClassVar[bool] = False
    # Whether (or with which values of its options) the mask head must see the box head's positive RoIs.
    needs_same_rois: ClassVar[bool | dict[str, list[str]]] = False
    # Whether (or with which values of its options) it keeps what the shared layers of the box head made.
    needs_fixed_layers: ClassVar[bool | dict[str, list[str]]] = False
    # Classification losses it works with; none named: all.
    losses: ClassVar[list[str]] = []
    # Options that decide over which images a hook of the part runs between epochs, in order: {option: {value: images}},
    # images being "holdout" or "val".
    extra_images: ClassVar[dict[str, dict[str, str]]] = {}

    @staticmethod
    def hooks(
        options: Mapping[str, Any], dataloader: Callable[..., Mapping[str, Any]], iterations_per_epoch: int | None
    ) -> list[dict[str, Any]]:
        """Return the configs of the training hooks that the part needs.

        Args:
            options: The constructor's options.
            dataloader: Called with ``holdout``, ``val`` or ``train`` and ``per_class``, the images of every class to
                take (None: all): config of a finite dataloader over those images with annotations and the training
                pipeline.
            iterations_per_epoch: Iterations that see each training image once; None for epoch-based loops.
        """
        return []

    def check_head(self, bbox_head: Any) -> None:
        """Refuse a box head that the part cannot act in, as soon as the detector is built."""

    def before_images(self, roi_head: Any, stage: int, feats: tuple[Tensor, ...], samples: list[Any]) -> None:
        """See whole images before the heads do.

        Args:
            roi_head: The RoI head.
            stage: The part's stage of a cascade; 0 elsewhere.
            feats: FPN maps, each ``(B, c, h, w)``.
            samples: ``B`` data samples, as of :meth:`image_losses`.
        """

    def before_losses(self, head: Any, batch: BoxBatch) -> BoxBatch:
        """Return what the ordinary losses of the box head are computed from: by default the batch as it is.

        All other call points still see the original batch.
        """
        return batch

    def box_losses(self, head: Any, batch: BoxBatch) -> dict[str, Tensor]:
        """Return losses to add to (or, under an existing name, to put in place of) ``batch.losses``.

        Args:
            head: The box head; ``head.fc_cls`` is its classifier, ``head.loss_cls`` its classification loss.
            batch: What the head computed.
        """
        return {}

    def mask_losses(self, head: Any, batch: MaskBatch) -> dict[str, Tensor]:
        """As :meth:`box_losses`, for the mask head."""
        return {}

    def image_losses(self, roi_head: Any, feats: tuple[Tensor, ...], samples: list[Any]) -> dict[str, Tensor]:
        """Return losses of whole images.

        Args:
            roi_head: The RoI head.
            feats: FPN maps, each ``(B, c, h, w)``.
            samples: ``B`` data samples with ``gt_instances`` (``bboxes`` xyxy in pixels of the network input) and
                ``metainfo``.
        """
        return {}

    def class_affinity(self) -> dict[str, Tensor]:
        """Return how alike the classes are to this part after training, in label order; empty if it does not say.

        Returns:
            ``cosine`` ``(K, K)`` float32, 0 for unseen classes; ``nearest`` ``(K, n)`` int64 labels of the classes most
            like each class, -1 for none; ``similarity`` ``(K, n)`` float32, their cosines; ``effective`` ``(K,)``
            float32, the number of classes over which a RoI of the class spreads its weights.
        """
        return {}

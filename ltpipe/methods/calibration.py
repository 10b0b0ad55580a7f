"""Calibrators: classifications that are trained, or derived, for a detector which otherwise stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import Reads

State = dict[str, Tensor]


class Calibrator(nn.Module):
    """A classification that is trained, or derived, for a trained detector whose other weights stay as they are.

    Life: construct, :meth:`initialise` from the box head of the loaded detector, train on rows of stored RoI features
    (:func:`ltpipe.engine.calibrator_training.train_head`), :meth:`merge` into the detector's config and weights.

    Attributes:
        needs_features: Whether it is trained on stored RoI features. The catalogue reads it from the class body.
        needs_softmax: Whether the detector must score by softmax over K + 1 outputs; or the options, with their values,
            for which it must. The catalogue reads this and the next one too.
        needs_cross_entropy: Whether it must have been trained with softmax cross entropy.
        needs_linear: Whether the detector's classifier must be linear.
        needs_class_logits: Whether every class must have a logit of its own, in label order.
        work: What is done, in a few words, for the table of the documentation.
        sweeps: Options that are worth choosing on held-out images, and the values to try.
        rows_in_label_order: Whether row c of the calibrated classifier belongs to class c.
        lowest_level: Lowest feature it reads, ``roi``, ``fc1`` or ``last``, for ``features.level``; or an option and
            the level for each of its values.
        fuses_scores: Whether the merged detector has two classifiers, with several ways to combine their scores.
        reads: Feature the rows hold, final after :meth:`initialise`; see :func:`read_features`.
        trains_boxes: Whether :meth:`train_losses` needs the boxes of the rows, final after :meth:`initialise`.
        num_classes: Foreground classes K.
    """

    needs_features: ClassVar[bool] = True
    needs_softmax: ClassVar[bool | dict[str, list[str]]] = False
    needs_cross_entropy: ClassVar[bool] = False
    needs_linear: ClassVar[bool] = False
    needs_class_logits: ClassVar[bool] = False
    work: ClassVar[str] = "SGD on stored features"
    sweeps: ClassVar[dict[str, list[float]]] = {}
    rows_in_label_order: ClassVar[bool] = True
    lowest_level: ClassVar[str | dict[str, dict[str, str]]] = "last"
    fuses_scores: ClassVar[bool] = False
    reads: Reads = "last"
    trains_boxes: bool = False
    num_classes: int

    @staticmethod
    def check_head(bbox_head: Any) -> None:
        """Refuse a box head of which it cannot be made; asked before anything is trained, so weights may be missing."""

    def initialise(self, bbox_head: Any) -> None:
        """Build the layers from the trained box head and copy the weights that are reused."""
        raise NotImplementedError

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Load the trained head of a finished checkpoint instead of training; only where ``fuses_scores`` is set.

        The head is the submodule ``head``.

        Args:
            state: Tensors under the detector's names, ``roi_head.calibrator.*``, in the order of its labels.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return raw classifier outputs ``(n, C)`` of the rows ``x``, which hold the feature named by ``reads``."""
        raise NotImplementedError

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one mini-batch as a scalar whose gradients are averaged over processes.

        Args:
            cls_score: ``(n, C)`` float, from :meth:`forward`.
            labels: ``(n,)`` int64, background K.
        """
        raise NotImplementedError

    def train_losses(self, x: Tensor, labels: Tensor, *boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw classifier outputs ``(n, C)`` and the loss to minimise; :meth:`loss` unless boxes are trained too.

        Args:
            x: Rows as for :meth:`forward`.
            labels: ``(n,)`` int64, background K.
            *boxes: With ``trains_boxes`` the rows' boxes and the ground truths they belong to, each ``(n, 4)`` float
                xyxy in pixels of the network input; otherwise not used.
        """
        cls_score: Tensor = self(x)
        return cls_score, self.loss(cls_score, labels)

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return probabilities ``(n, K + 1)``, background last."""
        return F.softmax(cls_score.float(), dim=-1)

    def fused(self, own: Tensor, scores: Tensor) -> Tensor:
        """Return the final scores ``(n, K + 1)`` of the detector's own and those of :meth:`scores`."""
        return scores

    def observe(self, x: Tensor, labels: Tensor) -> None:
        """See every mini-batch before its step; for calibrators that collect statistics."""

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Return the detector's model config and weights with this calibrator in them.

        The config must not depend on what was trained: later stages rebuild it with a calibrator that is only
        initialised.

        Args:
            model: mmdet model config of the trained detector; not changed.
            state: Its ``state_dict``; not changed.
            stage: Stage of a cascade, which has a calibrator per stage, merged in order; None outside cascades.
        """
        raise NotImplementedError


class LossCalibrator(Calibrator):
    """A new classifier with a loss of its own, trained on the frozen detector and put in place of the detector's.

    Args:
        num_classes: Foreground classes K.
        kind: Class of the loss, registered as ``ltpipe.<name of the class>``.
        options: Its options.

    Attributes:
        head: What is trained, with names as in a box head: ``loss_cls`` and, after :meth:`initialise`, ``fc_cls``.
    """

    def __init__(self, num_classes: int, kind: type[nn.Module], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.loss_config = {"type": f"ltpipe.{kind.__name__}", **options}
        self.head: Any = nn.Module()
        self.head.loss_cls = kind(**options)

    @property
    def loss_cls(self) -> Any:
        """The classification loss."""
        return self.head.loss_cls

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, C)`` logits of the last hidden layer after its ReLU."""
        logits: Tensor = self.head.fc_cls(x.float())
        return logits

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the rows of this process."""
        loss: Tensor = self.loss_cls(cls_score, labels)
        return loss

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(n, K + 1)``, background last."""
        scores: Tensor = self.loss_cls.get_activation(cls_score)
        return scores

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Put the classifier and its loss in place of the detector's, and whatever else of the box head was trained."""
        weights, new = self.head.state_dict(), {"type": "Linear"}
        return replace_classifier(model, state, classifier=new, loss=self.loss_config, weights=weights, stage=stage)


def check_softmax(bbox_head: Any, name: str) -> None:
    """Refuse a detector that does not score by a plain softmax over K + 1 outputs.

    Args:
        bbox_head: Its box head.
        name: Type of the calibrator, for the error.

    Raises:
        UserError: It does not.
    """
    if bbox_head.custom_cls_channels or getattr(bbox_head.loss_cls, "use_sigmoid", False):
        raise UserError(
            "this calibrator changes the logits of a detector trained with softmax cross entropy",
            where=f"calibrate: type {name}",
            got=f"loss {type(bbox_head.loss_cls).__name__}",
            allowed="model.loss.type: cross_entropy",
        )


def head_prefix(stage: int | None) -> str:
    """Return the prefix of a box head in the detector's state; ``stage`` of a cascade, None outside cascades."""
    return "roi_head.bbox_head." if stage is None else f"roi_head.bbox_head.{stage}."


def replace_classifier(
    model: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    classifier: Mapping[str, Any],
    loss: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor],
    stage: int | None = None,
) -> tuple[dict[str, Any], State]:
    """Return config and weights of a detector with another classifier and classification loss in a box head.

    Args:
        model: mmdet model config.
        state: ``state_dict`` of the detector.
        classifier: New ``cls_predictor_cfg``.
        loss: New ``loss_cls``; None: the detector's own stays.
        weights: Tensors of the new ``fc_cls`` and ``loss_cls``, keys relative to the box head.
        stage: Stage of a cascade, None outside cascades.
    """
    prefix = head_prefix(stage)
    changed = deepcopy(dict(model))
    head = changed["roi_head"]["bbox_head"] if stage is None else changed["roi_head"]["bbox_head"][stage]
    assert isinstance(head, dict), "a cascade has a classifier per stage"
    head["cls_predictor_cfg"] = deepcopy(dict(classifier))
    replaced = [f"{prefix}fc_cls."]
    if loss is not None:
        head["loss_cls"] = deepcopy(dict(loss))
        replaced.append(f"{prefix}loss_cls.")
    kept = {k: v for k, v in state.items() if not k.startswith(tuple(replaced))}
    return changed, kept | {f"{prefix}{k}": v.detach().cpu().clone() for k, v in weights.items()}

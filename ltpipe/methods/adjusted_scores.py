"""Scores of a trained detector whose logits are shifted by a constant per class, at test time only.

With ``o`` a constant per foreground class and ``act`` the activation of the detector's own classification loss:

    logits:  scores = act(z + [o, 0])          softmax, sigmoid and Seesaw heads; IIF: softmax(w z + [o, 0])
    product: score_c = act(z)_c sigmoid(z_c + o_c)   FRACAL on sigmoid heads

Background and objectness are not shifted, so a constant added to all of ``o`` moves every class against the background.
In a cascade the logits of the stages are averaged before they are activated: only the loss of the last stage is
wrapped, which shifts once and leaves the boxes that the stages refine as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmdet.models.losses import SeesawLoss, accuracy
from numpy.typing import NDArray
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.calibration import Calibrator, State, head_prefix
from ltpipe.registry import MODELS


def activation(loss: Any, cls_score: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """Return the scores that a classification loss makes of shifted logits.

    Args:
        loss: A classification loss; it may say in ``shifted_activation`` where the shift belongs.
        cls_score: ``(N, C)`` float classifier output.
        shift: ``(C,)`` float32, or 0.

    Returns:
        ``(N, K + 1)`` float32, background last.
    """
    with torch.autocast(cls_score.device.type, enabled=False):
        logits = cls_score.float()
        if hasattr(loss, "shifted_activation"):
            scores: Tensor = loss.shifted_activation(logits, shift)
            return scores
        if getattr(loss, "custom_activation", False):
            scores = loss.get_activation(logits + shift)
            return scores
        return F.softmax(logits + shift, dim=-1)


@MODELS.register_module()
class AdjustedScores(nn.Module):
    """In place of a detector's classification loss: its scores, shifted per class; in training it is that loss.

    Args:
        loss: Config of the detector's own loss, or the loss itself.
        num_classes: Foreground classes ``K``.
        product: Multiply the scores by the sigmoid of the shifted logits instead of shifting within the activation.

    Attributes:
        offset: ``(K,)`` float32.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    class_rows: ClassVar[dict[str, int]] = {"offset": 0}

    offset: Tensor

    def __init__(self, loss: Mapping[str, Any] | nn.Module, num_classes: int, product: bool = False) -> None:
        super().__init__()
        self.loss = loss if isinstance(loss, nn.Module) else MODELS.build(deepcopy(dict(loss)))
        self.num_classes, self.product = num_classes, product
        self.softmax_scores: bool = getattr(self.loss, "softmax_scores", True)
        self.register_buffer("offset", torch.zeros(num_classes))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the detector's own loss."""
        return self.loss(*args, **kwargs)

    def get_cls_channels(self, num_classes: int) -> int:
        """Return the channels of the classifier that the detector's loss asks for."""
        own: Any = self.loss
        return int(own.get_cls_channels(num_classes)) if hasattr(own, "get_cls_channels") else num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(N, K + 1)`` float32 of the classifier's outputs ``(N, C)``, background last."""
        return self.shifted_activation(cls_score, 0.0)

    def shifted_activation(self, cls_score: Tensor, shift: Tensor | float) -> Tensor:
        """As :meth:`get_activation`, with a further shift: adjusted scores may be adjusted again."""
        if not self.product:
            own = F.pad(self.offset, (0, cls_score.shape[-1] - self.num_classes))
            return activation(self.loss, cls_score, own + shift)
        scores = activation(self.loss, cls_score, shift)
        factor = (cls_score[..., : self.num_classes].float() + self.offset).sigmoid()
        return scores * F.pad(factor, (0, 1), value=1.0)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the accuracies of the detector's own loss."""
        own: Any = self.loss
        if getattr(own, "custom_accuracy", False):
            return dict(own.get_accuracy(cls_score, labels))
        return {"acc": accuracy(cls_score, labels)}


class OffsetCalibrator(Calibrator):
    """A constant per class that is computed from the training data: nothing is trained, and no weight changes.

    Attributes:
        product: See :class:`AdjustedScores`.
    """

    needs_features = False
    needs_class_logits = True
    work = "computed"
    product: bool = False

    adjusted: AdjustedScores

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def offsets(self, sigmoid: bool) -> NDArray[Any]:
        """Return the shift of every class, ``(K,)`` float64.

        Args:
            sigmoid: Whether the classes are scored one by one, without a softmax over them.
        """
        raise NotImplementedError

    def initialise(self, bbox_head: Any) -> None:
        """Keep the detector's classification loss.

        Raises:
            UserError: It has no logit per class.
        """
        loss = bbox_head.loss_cls
        if not getattr(loss, "rows_in_label_order", True):
            raise UserError(
                "this calibrator shifts the logit of every class, and this classifier scores classes in groups",
                where="model.loss.type",
                got=type(loss).__name__,
                allowed="a softmax, sigmoid or Seesaw loss",
            )
        softmax = getattr(loss, "softmax_scores", True) or isinstance(loss, SeesawLoss)
        self.adjusted = AdjustedScores(deepcopy(loss), self.num_classes, self.product and not softmax)
        self.adjusted.offset.copy_(torch.from_numpy(self.offsets(not softmax)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``: the rows are the detector's own logits ``(n, C)``."""
        return x

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(n, K + 1)`` float32 of logits ``(n, C)``, background last."""
        return self.adjusted.get_activation(cls_score)

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Wrap the classification loss of the box head; in a cascade that of its last stage."""
        merged = deepcopy(dict(model))
        heads = merged["roi_head"]["bbox_head"]
        if stage is not None and stage + 1 < len(heads):
            return merged, dict(state)
        head, prefix = heads if stage is None else heads[stage], f"{head_prefix(stage)}loss_cls."
        wrapped = {"type": "ltpipe.AdjustedScores", "loss": head["loss_cls"], "num_classes": self.num_classes}
        head["loss_cls"] = {**wrapped, "product": self.adjusted.product}
        moved = {
            f"{prefix}loss.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: value
            for key, value in state.items()
        }
        return merged, moved | {f"{prefix}offset": self.adjusted.offset.detach().cpu().clone()}

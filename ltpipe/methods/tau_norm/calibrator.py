"""tau-normalisation (Kang et al., ICLR 2020, arXiv 1910.09217; in detectors ``FishYuLi/BalancedGroupSoftmax``).

    W'_c = W_c / |W_c|^tau,    z' = W' x + b,    from logits: z'_c = (z_c - b_c) / |W_c|^tau + b_c

The bias is kept. Rows of foreground and background are not comparable in detectors, where it is a weak baseline.
Selecting ("tau-norm-select") keeps the detector's scores unless its best class is an object and the best class of the
normalised classifier is one of few instances, which then gives all scores of the RoI. Acts on the rows of the linear
classifier; selecting needs instance counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.adjusted_scores import activation
from ltpipe.methods.box_layers import is_plain_linear
from ltpipe.methods.calibration import Calibrator, State, replace_classifier
from ltpipe.registry import MODELS, method


def select_rows(own: Tensor, normalised: Tensor, selected: Tensor) -> Tensor:
    """Return the rows of one of two classifiers, ``(N, K + 1)``.

    Args:
        own: ``(N, K + 1)`` logits or scores of the detector's classifier, background last.
        normalised: The same of the normalised one.
        selected: ``(K + 1,)`` bool, classes that take the normalised rows; False for the background.
    """
    background = own.shape[1] - 1
    taken = (own.argmax(dim=1) != background) & selected[normalised.argmax(dim=1)]
    return torch.where(taken[:, None], normalised, own)


@MODELS.register_module()
class SelectedTauNorm(nn.Linear):
    """A linear classifier that gives some RoIs the logits of its tau-normalised rows.

    Args:
        in_features: Width of the features.
        out_features: Outputs ``K + 1``, background last.

    Attributes:
        factor: ``(K + 1,)`` float32, what the rows are multiplied by.
        selected: ``(K + 1,)`` bool, see :func:`select_rows`.
    """

    class_rows: ClassVar[dict[str, int]] = {"weight": 0, "bias": 0, "factor": 0, "selected": 0}

    factor: Tensor
    selected: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("factor", torch.ones(out_features))
        self.register_buffer("selected", torch.zeros(out_features, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, K + 1)`` of features ``(N, d)``."""
        return self.choose(super().forward(x))

    def choose(self, own: Tensor) -> Tensor:
        """Return the logits ``(N, K + 1)`` to use for those of the rows as they are."""
        normalised = (own - self.bias) * self.factor + self.bias
        return select_rows(own, normalised, self.selected)


@method("calibrator", "tau_norm")
class TauNorm(Calibrator):
    """The rows of a linear classifier divided by a power of their norms, without training anything.

    Args:
        num_classes: Foreground classes K.
        instance_counts: Training instances per class.
        tau: Exponent of the norm; 0 leaves the detector as it is.
        rows: Normalise the rows of the classes, or ``all``, the background's among them.
        select_below: Take the normalised rows only for RoIs whose best class has fewer training instances than this;
            null: for all RoIs.
    """

    needs_features = False
    needs_linear = True
    needs_class_logits = True
    work = "computed"
    sweeps = {"tau": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]}

    def __init__(
        self,
        num_classes: int,
        instance_counts: Sequence[int],
        tau: float = 1.0,
        rows: Literal["foreground", "all"] = "foreground",
        select_below: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.tau, self.rows = num_classes, tau, rows
        self.few = None if select_below is None else torch.as_tensor(instance_counts) < select_below

    def initialise(self, bbox_head: Any) -> None:
        """Copy the detector's classifier and measure its rows.

        Raises:
            UserError: It is not linear, or has no background to select against.
        """
        source = bbox_head.fc_cls
        softmax = getattr(bbox_head.loss_cls, "softmax_scores", True) and source.out_features == self.num_classes + 1
        if not is_plain_linear(source) or not getattr(bbox_head.loss_cls, "rows_in_label_order", True):
            raise UserError(
                "only the rows of a linear classifier can be normalised; those of a cosine classifier already are",
                where="calibrate: type tau_norm",
                got=f"{type(source).__name__}, loss {type(bbox_head.loss_cls).__name__}",
                allowed="model.classifier linear, with one row per class",
            )
        if self.few is not None and not softmax:
            raise UserError(
                "rows are selected against the background of a softmax",
                where="calibrate: select_below",
                got=type(bbox_head.loss_cls).__name__,
                allowed="a softmax loss, or select_below: null",
            )
        self.loss_cls, self.classifier = bbox_head.loss_cls, dict(bbox_head.cls_predictor_cfg)
        self.fc_cls = SelectedTauNorm(source.in_features, source.out_features).requires_grad_(False)
        self.fc_cls.weight.copy_(source.weight.detach())
        self.fc_cls.bias.copy_(source.bias.detach())
        scaled = source.out_features if self.rows == "all" else self.num_classes
        norm = self.fc_cls.weight[:scaled].norm(dim=1)
        self.fc_cls.factor[:scaled] = torch.where(norm > 0, norm, torch.ones_like(norm)) ** -self.tau
        self.fc_cls.selected.copy_(
            torch.ones(source.out_features, dtype=torch.bool)
            if self.few is None
            else F.pad(self.few, (0, source.out_features - self.num_classes))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, C)``; the rows are those of the detector itself."""
        x = x.float()
        if self.few is not None:
            return self.fc_cls.choose(x)
        return (x - self.fc_cls.bias) * self.fc_cls.factor + self.fc_cls.bias

    def scores(self, cls_score: Tensor) -> Tensor:
        """Return scores ``(n, K + 1)`` as the detector's own loss makes them."""
        return activation(self.loss_cls, cls_score)

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Put the normalised rows, or the classifier that selects, in place of the detector's."""
        if self.few is None:
            rows = self.fc_cls.weight * self.fc_cls.factor[:, None]
            weights = {"fc_cls.weight": rows, "fc_cls.bias": self.fc_cls.bias}
        else:
            weights = {f"fc_cls.{key}": value for key, value in self.fc_cls.state_dict().items()}
        classifier = self.classifier if self.few is None else {"type": "ltpipe.SelectedTauNorm"}
        return replace_classifier(model, state, classifier=classifier, weights=weights, stage=stage)

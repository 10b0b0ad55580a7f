"""Decoupled training of the classifier: cRT and LWS.

Paper: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", arXiv 1910.09217;
repository tztztztztz/eqlv2 (``LWSLinear`` and the cRT configuration). Both keep everything but the classifier of a
trained detector:

* cRT trains a new classifier, ``z = W x + b``, with softmax cross entropy on class-balanced data;
* LWS keeps ``W`` and ``b`` and learns one scale per class, ``z_c = s_c (W_c x) + b_c``, from ``s = 1``.

They act on the input of the classifier; cRT's optional class weights need training instance counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import is_plain_linear, rectifies
from ltpipe.methods.calibration import Calibrator, State, replace_classifier
from ltpipe.methods.class_weights import effective_number_weights, inverse_frequency_weights
from ltpipe.methods.reductions import mean_over_processes
from ltpipe.registry import method

_CROSS_ENTROPY = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}


def lws_logits(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """Return logits ``(N, C)`` of a linear layer whose rows are scaled.

    Args:
        x: ``(N, d)`` float.
        weight: ``(C, d)`` float.
        bias: ``(C,)`` float, not scaled, or None.
        scale: ``(C, 1)`` float.
    """
    return F.linear(x, weight * scale, bias)


@method("classifier", "scaled_linear")
class ScaledLinear(nn.Linear):
    """Linear layer with frozen weights and a learnt scale per output, ``weight_scaler`` ``(C, 1)``: LWS.

    Args:
        in_features: Width of the input.
        out_features: Outputs C.
    """

    needs_start = True
    class_rows: ClassVar[dict[str, int]] = {"weight": 0, "bias": 0, "weight_scaler": 0}

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight_scaler = nn.Parameter(torch.ones(out_features, 1))
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C)``."""
        return lws_logits(x, self.weight, self.bias, self.weight_scaler)


class _SoftmaxClassifier(Calibrator):
    """A classifier with K + 1 softmax outputs in place of the detector's."""

    fc_cls: nn.Module
    classifier: dict[str, Any]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, K + 1)``, background last."""
        logits: Tensor = self.fc_cls(x.float())
        return logits

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy averaged over the rows of all processes."""
        return mean_over_processes(F.cross_entropy(cls_score.float(), labels, reduction="none"))

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Put the classifier in place of the detector's."""
        weights = {f"fc_cls.{k}": v for k, v in self.fc_cls.state_dict().items()}
        return replace_classifier(
            model, state, classifier=self.classifier, loss=_CROSS_ENTROPY, weights=weights, stage=stage
        )


@method("calibrator", "crt")
class CRT(_SoftmaxClassifier):
    """Classifier re-training: a new classifier of the detector's kind on class-balanced rows.

    Args:
        num_classes: Foreground classes K.
        instance_counts: Training instances per class.
        class_weight: Weights of the rows by class: ``none`` as in cRT; ``inverse`` frequency or ``effective_number``,
            the re-weighting baselines of FishYuLi/BalancedGroupSoftmax, background 1.
    """

    row_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        instance_counts: Sequence[int],
        class_weight: Literal["none", "inverse", "effective_number"] = "none",
    ) -> None:
        super().__init__(num_classes)
        counts = torch.as_tensor(instance_counts)
        weights = {
            "none": torch.ones(num_classes),
            "inverse": inverse_frequency_weights(counts),
            "effective_number": effective_number_weights(counts),
        }[class_weight]
        self.register_buffer("row_weight", F.pad(weights.float(), (0, 1), value=1.0), persistent=False)

    def initialise(self, bbox_head: Any) -> None:
        """Make a new classifier of the detector's kind, N(0, 0.01) with zero bias if it is linear."""
        self.classifier = dict(bbox_head.cls_predictor_cfg)
        sizes = {"in_features": bbox_head.fc_cls.in_features, "out_features": self.num_classes + 1}
        fresh = MMDET_MODELS.build({**self.classifier, **sizes})
        if is_plain_linear(fresh):
            nn.init.normal_(fresh.weight, std=0.01)
            nn.init.zeros_(fresh.bias)
        self.fc_cls = fresh
        self.reads = "last" if rectifies(self.fc_cls) else "last_raw"

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross entropy over the number of rows of all processes."""
        rows = F.cross_entropy(cls_score.float(), labels, reduction="none")
        return mean_over_processes(rows * self.row_weight[labels])


@method("calibrator", "lws")
class LWS(_SoftmaxClassifier):
    """Learnable weight scaling: one factor per class on the rows of the detector's linear classifier.

    Args:
        num_classes: Foreground classes K.
    """

    needs_softmax = True
    needs_linear = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.classifier = {"type": "ltpipe.ScaledLinear"}

    def initialise(self, bbox_head: Any) -> None:
        """Copy the detector's classifier; all scales are 1.

        Raises:
            UserError: The classifier is not a linear layer with K + 1 outputs.
        """
        source = bbox_head.fc_cls
        if not is_plain_linear(source) or source.out_features != self.num_classes + 1:
            raise UserError(
                "this classifier cannot be rescaled",
                where="calibrate: type lws",
                got=f"{type(source).__name__}, loss {type(bbox_head.loss_cls).__name__}",
                allowed="a linear classifier trained with a softmax loss (model.classifier linear, K + 1 outputs)",
            )
        self.fc_cls = ScaledLinear(source.in_features, source.out_features)
        with torch.no_grad():
            self.fc_cls.weight.copy_(source.weight)
            self.fc_cls.bias.copy_(source.bias)

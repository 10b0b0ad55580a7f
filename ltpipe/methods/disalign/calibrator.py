"""DisAlign (Zhang et al., CVPR 2021, arXiv 2103.16370; code ``Megvii-BaseDetection/DisAlign``).

With ``x`` the input of the classifier, which is not trained any more:

    s_i = sigmoid(v . x_i + v_0),    z'_ic = s_i (a_c z_ic + b_c) + (1 - s_i) z_ic,    background as it is
    L = sum_i u_{y_i} CE(z'_i, y_i) / sum_i u_{y_i},    u_c = K r_c^-rho / sum_j r_j^-rho,    u_bg = 1

with ``r`` the shares of the classes. ``a = 1`` and ``b = 0`` at the start: the detector as it is. Acts on the
classifier; needs counts and stored features of ordinary mini-batches. Which counts the authors' files hold is not
known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltpipe.methods.box_layers import rectifies
from ltpipe.methods.calibration import Calibrator, State, check_softmax, replace_classifier
from ltpipe.methods.frequency_links import seen_counts
from ltpipe.methods.reductions import all_reduce_sum, world_size
from ltpipe.methods.wrapped_classifier import WrappedClassifier
from ltpipe.registry import MODELS, method


def class_weights(counts: Sequence[int], exponent: float) -> Tensor:
    """Return ``u``, ``(K + 1,)`` float64, background last; classes without data count as having one.

    Args:
        counts: ``(K,)`` training instances or images.
        exponent: ``rho``.
    """
    n = torch.from_numpy(seen_counts(counts, "DisAlign"))
    powers = (n / n.sum()) ** -exponent
    return F.pad(len(n) * powers / powers.sum(), (0, 1), value=1.0)


def aligned_logits(logits: Tensor, confidence: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``z'``, ``(N, K + 1)``.

    Args:
        logits: ``(N, K + 1)`` float, background last.
        confidence: ``(N, 1)`` float, ``s`` in [0, 1].
        scale: ``(K,)`` float, ``a``.
        shift: ``(K,)`` float, ``b``.
    """
    classes = logits[:, :-1]
    aligned = confidence * (classes * scale + shift) + (1 - confidence) * classes
    return torch.cat([aligned, logits[:, -1:]], dim=1)


@MODELS.register_module()
class DisAlignClassifier(WrappedClassifier):
    """A classifier with aligned logits; see :class:`~ltpipe.methods.wrapped_classifier.WrappedClassifier`.

    Attributes:
        logit_scale: ``(K,)`` float, ``a``.
        logit_bias: ``(K,)`` float, ``b``.
        confidence: Linear layer with one output, ``v`` and ``v_0``.
    """

    class_rows: ClassVar[dict[str, int]] = {**WrappedClassifier.class_rows, "logit_scale": 0, "logit_bias": 0}

    def __init__(self, in_features: int, out_features: int, classifier: Mapping[str, Any]) -> None:
        super().__init__(in_features, out_features, classifier)
        self.classifier.requires_grad_(False)
        self.logit_scale = nn.Parameter(torch.ones(out_features - 1))
        self.logit_bias = nn.Parameter(torch.zeros(out_features - 1))
        self.confidence = nn.Linear(in_features, 1)
        nn.init.normal_(self.confidence.weight, std=0.01)
        nn.init.zeros_(self.confidence.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, K + 1)`` of features ``(N, d)``."""
        logits = self.classifier(x)
        return aligned_logits(logits, self.confidence(x).sigmoid(), self.logit_scale, self.logit_bias)


@method("calibrator", "disalign")
class DisAlign(Calibrator):
    """Logits scaled and shifted per class as far as a learnt confidence asks for it; the classifier is not trained.

    Published for LVIS v1: 9,000 steps of 16 images, ``{lr: 0.02, momentum: 0.9, weight_decay: 0.0001, drops: [8000],
    warmup_iterations: 1000, warmup_factor: 0.001}``, on ordinary mini-batches.

    Args:
        num_classes: Foreground classes K.
        image_counts: Training images per class.
        instance_counts: Training instances per class.
        exponent: ``rho`` of the class weights (published for LVIS: 0.8).
        count: Weigh classes by their instances or images.
    """

    needs_cross_entropy = True

    row_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        image_counts: Sequence[int],
        instance_counts: Sequence[int],
        exponent: float = 0.8,
        count: Literal["image", "instance"] = "instance",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        weights = class_weights(image_counts if count == "image" else instance_counts, exponent)
        self.register_buffer("row_weight", weights.float(), persistent=False)

    def initialise(self, bbox_head: Any) -> None:
        """Put the alignment around the detector's classifier.

        Raises:
            UserError: The detector does not score by a softmax over K + 1 outputs.
        """
        check_softmax(bbox_head, "disalign")
        source = bbox_head.fc_cls
        self.classifier = {"type": "ltpipe.DisAlignClassifier", "classifier": dict(bbox_head.cls_predictor_cfg)}
        self.fc_cls = DisAlignClassifier(source.in_features, source.out_features, bbox_head.cls_predictor_cfg)
        self.fc_cls.classifier.load_state_dict(source.state_dict())
        self.reads = "last" if rectifies(self.fc_cls) else "last_raw"

    def forward(self, x: Tensor) -> Tensor:
        """Return aligned logits ``(n, K + 1)``, background last, of the input of the classifier."""
        logits: Tensor = self.fc_cls(x.float())
        return logits

    def loss(self, cls_score: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross entropy over the sum of the weights of all processes' rows."""
        weight = self.row_weight[labels]
        rows = F.cross_entropy(cls_score.float(), labels, reduction="none") * weight
        total = all_reduce_sum(weight.sum())
        return rows.sum() * (world_size() / torch.where(total > 0, total, torch.ones_like(total)))

    def merge(
        self, model: Mapping[str, Any], state: Mapping[str, Tensor], stage: int | None = None
    ) -> tuple[dict[str, Any], State]:
        """Put the aligned classifier in place of the detector's."""
        weights = {f"fc_cls.{key}": value for key, value in self.fc_cls.state_dict().items()}
        return replace_classifier(model, state, classifier=self.classifier, weights=weights, stage=stage)

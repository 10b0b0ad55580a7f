"""SimCal's calibrated classification heads.

Paper: arXiv 2007.11978; repository twangnh/SimCal (``simple2fc``, ``simple3fc``), and its ablation of heads.

The pooled RoI feature, flattened channel by channel, passes hidden layers with ReLU and a classifier with K + 1
outputs, background last: ``z = C(relu(W_n ... relu(W_1 x)))``. The heads differ in how many layers there are, where
they start from and which are trained:

=============== ======================================= ==============================
head            starts from                             trained
=============== ======================================= ==============================
2fc_rand        random, one hidden layer                everything
3fc_rand        random, the box head's layers           everything
3fc_ft          the box head                            everything
3fc_ft_freeze1  the box head                            all but the first hidden layer
cls_ft          the box head                            the classifier
cls_rand        the box head, random linear classifier  the classifier
2fc_ncm         the box head, class means               nothing; means are collected
=============== ======================================= ==============================

The number and width of the hidden layers are those of the box head (two of 1024 in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.methods.box_layers import Reads, only_fully_connected, rectifies
from ltpipe.methods.reductions import all_reduce_sum
from ltpipe.registry import MODELS

HeadName = Literal["2fc_rand", "3fc_rand", "3fc_ft", "3fc_ft_freeze1", "cls_ft", "cls_rand", "2fc_ncm"]
_LINEAR = {"type": "mmdet.Linear"}
_NEAREST_MEAN = {"type": "ltpipe.NearestClassMean"}


@MODELS.register_module()
class NearestClassMean(nn.Module):
    """Classifier ``z_c = -||x - mean_c||^2`` over the mean features of the rows seen so far.

    Classes without rows get ``-inf``, probability 0; before any row all outputs are equal.

    Args:
        in_features: Width d of the rows.
        out_features: Classes C.
    """

    sums: Tensor
    counts: Tensor
    class_rows: ClassVar[dict[str, int]] = {"sums": 0, "counts": 0}

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(out_features, in_features))
        self.register_buffer("counts", torch.zeros(out_features))

    def observe(self, x: Tensor, labels: Tensor) -> None:
        """Add rows ``(n, d)`` with labels ``(n,)`` of all processes to the means."""
        sums = torch.zeros_like(self.sums).index_add_(0, labels, x.detach().float())
        counts = torch.bincount(labels, minlength=len(self.counts)).to(self.counts)
        self.sums += all_reduce_sum(sums)
        self.counts += all_reduce_sum(counts)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, C)`` float32."""
        means = self.sums / self.counts.clamp(min=1)[:, None]
        with torch.autocast(x.device.type, enabled=False):
            squares = torch.cdist(x.float(), means, compute_mode="donot_use_mm_for_euclid_dist").square()
        seen = self.counts > 0
        return -squares.masked_fill(~seen & seen.any(), torch.inf)


class CalibrationHead(nn.Module):
    """Hidden layers ``fc1``, ``fc2``, ... and a classifier ``fc_cls`` with K + 1 outputs.

    Args:
        in_features: Length of the flattened RoI feature, 12544 for 256 x 7 x 7.
        hidden: Widths of the hidden layers.
        num_classes: Foreground classes K.
        classifier: ``cls_predictor_cfg`` of the classifier.
        first_trained: Layers before this one are frozen; ``len(hidden)`` is the classifier, one more freezes all.
    """

    class_rows: ClassVar[dict[str, int]] = {"fc_cls.weight": 0, "fc_cls.bias": 0}
    restarts_per_phase = True

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        classifier: Mapping[str, Any] = _LINEAR,
        first_trained: int = 0,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        for i, (fan_in, fan_out) in enumerate(zip(widths, hidden, strict=False)):
            self.add_module(f"fc{i + 1}", nn.Linear(fan_in, fan_out))
        sizes = {"in_features": widths[-1], "out_features": num_classes + 1}
        self.fc_cls = MMDET_MODELS.build({**classifier, **sizes})
        self.config = {
            "in_features": in_features,
            "hidden": list(hidden),
            "num_classes": num_classes,
            "classifier": dict(classifier),
            "first_trained": first_trained,
        }
        self.num_classes = num_classes
        self.rectify_last = rectifies(self.fc_cls)
        self.first_trained = first_trained
        for layer in [*self.hidden, self.fc_cls][:first_trained]:
            layer.requires_grad_(False)

    @property
    def hidden(self) -> list[nn.Linear]:
        """The hidden layers in order."""
        return [cast(nn.Linear, layer) for name, layer in self.named_children() if name != "fc_cls"]

    @property
    def reads(self) -> Reads:
        """The feature that :meth:`forward_trained` takes: the input of the first trained layer."""
        if self.first_trained == 0:
            return "roi"
        if self.first_trained >= len(self.hidden):
            return "last" if self.rectify_last else "last_raw"
        assert self.first_trained == 1, "features are stored after the first or the last hidden layer only"
        return "fc1"

    def forward(self, bbox_feats: Tensor) -> Tensor:
        """Return logits ``(n, K + 1)``, background last, of pooled RoI features ``(n, c, h, w)``."""
        return self._from_layer(bbox_feats, 0)

    def forward_trained(self, x: Tensor) -> Tensor:
        """Return logits ``(n, K + 1)`` of the feature named by :attr:`reads`."""
        return self._from_layer(x, min(self.first_trained, len(self.hidden)))

    def _from_layer(self, x: Tensor, start: int) -> Tensor:
        x = x.flatten(1)
        layers = self.hidden
        for i, layer in enumerate(layers[start:], start + 1):
            x = layer(x)
            if i < len(layers) or self.rectify_last:
                x = F.relu(x)
        logits: Tensor = self.fc_cls(x)
        return logits


def make_head(name: HeadName, bbox_head: Any, num_classes: int) -> CalibrationHead:
    """Return a calibrated head for a trained box head, which is not changed.

    Args:
        name: One of the heads of the module's table.
        bbox_head: mmdet's fully connected box head.
        num_classes: Foreground classes K.

    Raises:
        UserError: The box head has no purely fully connected classification path, or the classifier to be copied has
            other than K + 1 outputs because its loss asks for them.
    """
    layers = only_fully_connected(bbox_head)
    widths = [layer.out_features for layer in layers]
    copies_classifier = name in ("3fc_ft", "3fc_ft_freeze1", "cls_ft")
    fresh = _NEAREST_MEAN if name == "2fc_ncm" else _LINEAR
    classifier = bbox_head.cls_predictor_cfg if copies_classifier else fresh
    frozen = {"3fc_ft_freeze1": 1, "cls_ft": len(layers), "cls_rand": len(layers), "2fc_ncm": len(layers) + 1}
    hidden = widths[:1] if name == "2fc_rand" else widths
    head = CalibrationHead(layers[0].in_features, hidden, num_classes, classifier, frozen.get(name, 0))
    if name not in ("2fc_rand", "3fc_rand"):
        for mine, source in zip(head.hidden, layers, strict=True):
            mine.load_state_dict(source.state_dict())
    if copies_classifier:
        _copy_classifier(head, bbox_head, name)
    return head


def _copy_classifier(head: CalibrationHead, bbox_head: Any, name: str) -> None:
    outputs = bbox_head.num_classes + 1
    if bbox_head.custom_cls_channels:
        outputs = bbox_head.loss_cls.get_cls_channels(bbox_head.num_classes)
    if outputs != head.num_classes + 1:
        raise UserError(
            "this classifier cannot be continued with softmax cross entropy",
            where="calibrate: head",
            got=f"{name} with {outputs} outputs of {type(bbox_head.loss_cls).__name__}",
            allowed="2fc_rand, 3fc_rand, cls_rand and 2fc_ncm, which do not copy the classifier",
        )
    head.fc_cls.load_state_dict(bbox_head.fc_cls.state_dict())

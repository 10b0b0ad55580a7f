"""Detectors without a RoI head: one-stage (RetinaNet, RTMDet-Ins) and DETR-like (DINO), as mmdet has them.

Their heads stay mmdet's own; the number of classes, the limits of evaluation and, in RetinaNet's head, a classification
loss come from the experiment.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.config.detector import DENSE_HEADS
from ltpipe.data.categories import Categories, labels_in
from ltpipe.engine.meta_device import without_weights
from ltpipe.engine.training import read_checkpoint
from ltpipe.registry import MODELS


@MODELS.register_module()
class DenseLoss(nn.Module):
    """A sigmoid classification loss of ours in a head that calls it level by level and reads ``use_sigmoid``.

    Args:
        loss: Config of the loss, whose classifier has one channel per class and no background.
        use_sigmoid: Read from the config by mmdet's heads.
    """

    def __init__(self, loss: dict[str, Any], use_sigmoid: bool = True) -> None:
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.loss = MODELS.build(loss)

    def forward(self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the loss of logits ``(N, K)`` for labels ``(N,)``, background ``K``, with weights ``(N,)``."""
        found: Tensor = self.loss(cls_score, label, weight, **kwargs)
        return found


def is_one_stage(model: ConfigDict) -> bool:
    """Whether a model config has no RoI head."""
    return model.get("roi_head") is None


def dense_heads(model: ConfigDict) -> Iterator[ConfigDict]:
    """Yield the heads of a one-stage detector that know classes."""
    for name in DENSE_HEADS:
        head = model.get(name)
        if head is not None:
            yield head


def use_classes(model: ConfigDict, num_classes: int) -> None:
    """Set the number of classes of a one-stage detector; changed in place."""
    for head in dense_heads(model):
        if "num_things_classes" in head:
            head.update(num_things_classes=num_classes, num_stuff_classes=0)
        else:
            head.num_classes = num_classes
    if model.get("panoptic_fusion_head") is not None:
        model.panoptic_fusion_head.update(num_things_classes=num_classes, num_stuff_classes=0)


def use_loss(model: ConfigDict, loss: ConfigDict) -> None:
    """Put a classification loss into the anchor head of a one-stage detector; changed in place.

    Args:
        model: Model config.
        loss: Config of the loss.
    """
    head = model.bbox_head
    options = MODELS.get(loss.type).__init__.__code__.co_varnames
    if "levels" in options:
        loss = ConfigDict(loss, levels=int(model.neck.num_outs), average="avg_factor")
    prior = loss.get("prior_prob")
    if prior is not None:
        bias = dict(type="Normal", name="retina_cls", std=0.01, bias_prob=prior)
        head.init_cfg = dict(type="Normal", layer="Conv2d", std=0.01, override=bias)
    head.loss_cls = dict(type="ltpipe.DenseLoss", loss=loss, use_sigmoid=True)


def one_stage_start(path: Path, classes: Categories, model: ConfigDict) -> tuple[dict[str, Tensor], Categories | None]:
    """Return what a one-stage detector can start from: its class layers only if the file knows the same labels.

    Args:
        path: ``detector.load_from``.
        classes: Those of the experiment, in label order.
        model: Model config.

    Returns:
        The state, and the classes of its class layers; None if it has none.

    Raises:
        UserError: The file has the experiment's category ids with other names, or its names with other ids.
    """
    content, here = read_checkpoint(path), f"detector.load_from: {path}"
    known = Categories.of_checkpoint(content["meta"], here)
    if known is not None and (set(known.ids) == set(classes.ids) or set(known.names) == set(classes.names)):
        fix = "give the annotations its category ids and names, or start from another file"
        places = labels_in(replace(known, source="the checkpoint"), classes, where=here, fix=fix)
        if list(places) == list(range(len(known.ids))):
            return content["state_dict"], classes
    class_wise = class_layers(model, len(classes.ids))
    return {key: value for key, value in content["state_dict"].items() if key not in class_wise}, None


def class_layers(model: ConfigDict, num_classes: int) -> set[str]:
    """Return the tensors of a one-stage detector whose shape depends on the number of classes."""
    shapes = []
    for count in (num_classes, num_classes + 1):
        other = copy.deepcopy(model)
        use_classes(other, count)
        shapes.append({key: value.shape for key, value in without_weights(other).state_dict().items()})
    return {key for key, shape in shapes[0].items() if shape != shapes[1].get(key)}

"""Our detectors for mmdet 3.x without ltpipe, where mmdet has all that they need at test time.

Types are replaced by mmdet's of the same state-dict keys; parts only act in training and are left out; class weights
of IIF are multiplied into the rows of a linear classifier, ``(w_c W_c) x + w_c b_c = w_c (W_c x + b_c)``; shifts of
logits are added to its bias. The logits of a cascade are the mean over its stages, of which the last one alone is
shifted: the boxes that the others refine stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ltpipe.engine.heads import as_list
from ltpipe.engine.model_config import REPLACEMENTS
from ltpipe.registry import MODELS

OURS = "ltpipe."
_PARTS = "roi_head.parts."
_ADJUSTED = f"{OURS}AdjustedScores"
_CLASSIFIERS = {f"{OURS}LinearClassifier": "Linear", f"{OURS}NormedLinear": "NormedLinear"}


def plain_detector(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and state of the same detector in mmdet's own terms, as far as there are any.

    Args:
        model: Model config of a stage.
        state: Its weights.
    """
    plain, weights = without_parts(model, state)
    if plain.get("roi_head") is None:
        return _plain_one_stage(plain, weights)
    roi_head = plain["roi_head"]
    mmdet_types = {ours: theirs.__name__ for theirs, ours in REPLACEMENTS.items()}
    roi_head["type"] = mmdet_types.get(roi_head["type"], roi_head["type"])
    heads = as_list(roi_head["bbox_head"])
    for stage, head in enumerate(heads):
        head["type"] = mmdet_types.get(head["type"], head["type"])
        prefix = "roi_head.bbox_head." + (f"{stage}." if isinstance(roi_head["bbox_head"], list) else "")
        weight_of_stage = len(heads) if stage + 1 == len(heads) else 0
        _plain_box_head(head, weights, prefix, weight_of_stage)
    for head in as_list(roi_head.get("mask_head")):
        if head["type"] == f"{OURS}NormedMaskHead":
            options = {key: head.pop(key) for key in ("temperature", "eps", "norm_over_kernel") if key in head}
            head.update(type="FCNMaskHead", predictor_cfg={"type": "NormedConv2d", **options})
    # A detector that has been built holds the samplers of its RoI head once more.
    for owner in (plain, roi_head):
        if owner.get("train_cfg"):
            owner["train_cfg"] = _plain_samplers(owner["train_cfg"])
    return plain, weights


def without_parts(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and state of a detector without the parts that act in training only."""
    trimmed: dict[str, Any] = deepcopy(dict(model))
    (trimmed.get("roi_head") or {}).pop("parts", None)
    return trimmed, {key: value for key, value in state.items() if not key.startswith(_PARTS)}


def _plain_one_stage(plain: dict[str, Any], weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a one-stage detector without the state of a loss of ours, which scores as mmdet's focal loss does."""
    head = plain.get("bbox_head") or {}
    if dict(head.get("loss_cls") or {}).get("type") == f"{OURS}DenseLoss":
        head["loss_cls"] = {"type": "FocalLoss", "use_sigmoid": True}
        weights = {key: value for key, value in weights.items() if not key.startswith("bbox_head.loss_cls.")}
    return plain, weights


def foreign_types(model: Any) -> Iterator[str]:
    """Yield the types in a config that mmdet does not have."""
    if isinstance(model, Mapping):
        kind = model.get("type")
        if isinstance(kind, str) and kind.startswith(OURS):
            yield kind
        for value in model.values():
            yield from foreign_types(value)
    elif isinstance(model, list | tuple):
        for value in model:
            yield from foreign_types(value)


def _plain_box_head(head: dict[str, Any], weights: dict[str, Tensor], prefix: str, stages: int) -> None:
    """Put mmdet's classifier and loss into a box head; ``stages`` is what shifts of the logits are multiplied by."""
    classifier, loss = head["cls_predictor_cfg"], head["loss_cls"]
    shift: Tensor | float = 0.0
    if f"{prefix}fc_cls.bias" in weights and _can_be_shifted(loss, classifier):
        while loss["type"] == _ADJUSTED:
            offset = weights.pop(f"{prefix}loss_cls.offset")
            shift, loss = shift + stages * offset, loss["loss"]
            inner = f"{prefix}loss_cls.loss."
            for key in [key for key in weights if key.startswith(inner)]:
                weights[f"{prefix}loss_cls.{key.removeprefix(inner)}"] = weights.pop(key)
    if loss["type"] == f"{OURS}IIFLoss" and classifier["type"] == f"{OURS}LinearClassifier":
        scale = MODELS.build(loss).weights
        weights[f"{prefix}fc_cls.weight"] = weights[f"{prefix}fc_cls.weight"] * scale[:, None]
        weights[f"{prefix}fc_cls.bias"] = weights[f"{prefix}fc_cls.bias"] * scale
        loss = {"type": f"{OURS}SoftmaxLoss"}
    if isinstance(shift, Tensor):
        bias = weights[f"{prefix}fc_cls.bias"]
        weights[f"{prefix}fc_cls.bias"] = bias + F.pad(shift, (0, len(bias) - len(shift)))
    if loss["type"] == f"{OURS}SoftmaxLoss":
        loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": loss.get("loss_weight", 1.0)}
    elif loss["type"] == f"{OURS}SyncedSeesawLoss":
        loss = {key: value for key, value in loss.items() if key != "sync"} | {"type": "SeesawLoss"}
    head["loss_cls"] = loss
    head["cls_predictor_cfg"] = {**classifier, "type": _CLASSIFIERS.get(classifier["type"], classifier["type"])}


def _can_be_shifted(loss: Mapping[str, Any], classifier: Mapping[str, Any]) -> bool:
    """Whether shifts of the scores are shifts of the logits: not if they are multiplied, or weighted in between."""
    while loss["type"] == _ADJUSTED:
        if loss["product"]:
            return False
        loss = loss["loss"]
    linear: bool = classifier["type"] in (f"{OURS}LinearClassifier", "Linear")
    return linear if loss["type"] == f"{OURS}IIFLoss" else linear or classifier["type"] in _CLASSIFIERS


def _plain_samplers(value: Any) -> Any:
    """Return a training config with mmdet's samplers in place of ours; nothing of it acts at test time."""
    if isinstance(value, Mapping):
        if value.get("type") == f"{OURS}SeededSampler":
            return _plain_samplers(value["sampler"])
        plain = {key: _plain_samplers(inner) for key, inner in value.items()}
        # Of a phase: RoIs of the paired class only.
        return plain | ({"type": "RandomSampler"} if value.get("type") == f"{OURS}ClassRestrictedSampler" else {})
    if isinstance(value, list | tuple):
        return [_plain_samplers(inner) for inner in value]
    return value

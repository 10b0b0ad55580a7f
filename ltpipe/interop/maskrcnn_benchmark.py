"""Checkpoints of maskrcnn-benchmark, and of the LST repository, which is a fork of it.

Source: JoyHuYY1412/LST_LVIS. There, row 0 of the classifier is background and the box regressor has four rows for it;
here background is the last classifier row and the regressor has none. Frozen batch norm divides by the variance as it
is, so converted variances are smaller by what mmdet's adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ltpipe.interop.layout import Layout, Rule, State, apply_layout, background_first, background_last

__all__ = [
    "BENCHMARK",
    "LST",
    "background_first",
    "background_last",
    "convert_state_dict",
    "rename_key",
    "trim_class_layers",
]

PREFIX = "module."
_BOX, _MASK = "roi_head.bbox_head.", "roi_head.mask_head."
_RULES = (
    Rule(r"backbone\.body\.stem\.(conv1|bn1)\.", r"backbone.\1."),
    Rule(r"backbone\.body\.(layer\d)\.", r"backbone.\1."),
    Rule(r"backbone\.fpn\.fpn_inner(?P<minus1>\d)\.", "neck.lateral_convs.{minus1}.conv."),
    Rule(r"backbone\.fpn\.fpn_layer(?P<minus1>\d)\.", "neck.fpn_convs.{minus1}.conv."),
    Rule(r"rpn\.head\.conv\.", "rpn_head.rpn_conv."),
    Rule(r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    Rule(r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    Rule(r"rpn\.anchor_generator\.cell_anchors\.", None),
    Rule(r"roi_heads\.box\.feature_extractor\.fc6\.", f"{_BOX}shared_fcs.0."),
    Rule(r"roi_heads\.box\.feature_extractor\.fc7\.", f"{_BOX}shared_fcs.1."),
    Rule(r"roi_heads\.box\.predictor\.cls_score\.", f"{_BOX}fc_cls.", "classifier"),
    Rule(r"roi_heads\.box\.predictor\.scale_cls$", f"{_BOX}fc_cls.scale"),
    Rule(r"roi_heads\.box\.predictor\.bbox_pred\.", f"{_BOX}fc_reg.", "regressor"),
    Rule(r"roi_heads\.mask\.feature_extractor\.mask_fcn(?P<minus1>\d)\.", f"{_MASK}convs.{{minus1}}.conv."),
    Rule(r"roi_heads\.mask\.predictor\.conv5_mask\.", f"{_MASK}upsample."),
    Rule(r"roi_heads\.mask\.predictor\.mask_fcn_logits\.", f"{_MASK}conv_logits.", "mask"),
    Rule(r"roi_heads\.mask\.predictor\.MLP_mask\.", f"{_MASK}mlp_fusion."),
    Rule(r"roi_heads\.bbox2mask\.", f"{_MASK}weight_transfer."),
)
LST = Layout(
    name="lst",
    title="LST: a base or phase of JoyHuYY1412/LST_LVIS",
    marks=(r"backbone\.body\.stem\.", r"roi_heads\.box\.predictor\.scale_cls"),
    rules=_RULES,
    background="first",
    labels="count",
    norm_without_eps=True,
    geometry="benchmark",
)
BENCHMARK = Layout(
    name="benchmark",
    title="maskrcnn-benchmark Faster and Mask R-CNN with FPN",
    marks=(r"backbone\.body\.stem\.", r"rpn\.head\.cls_logits"),
    rules=_RULES,
    background="first",
    norm_without_eps=True,
    geometry="benchmark",
)


def rename_key(key: str) -> str | None:
    """Return mmdet's name of a source key (with or without ``module.``), or None for what mmdet does not store.

    Raises:
        UserError: Unknown key.
    """
    return LST.rename(key.removeprefix(PREFIX))[0]


def convert_state_dict(source: Mapping[str, Tensor]) -> State:
    """Return a source model state in mmdet's names and class order.

    Args:
        source: The ``model`` entry of a checkpoint.

    Raises:
        UserError: Unknown key.
    """
    return apply_layout(LST, {key.removeprefix(PREFIX): value for key, value in source.items()})


def trim_class_layers(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"model": ...}`` without the class-dependent layers, optimiser, scheduler and iteration.

    Args:
        checkpoint: Source checkpoint, e.g. the COCO detector LST starts from, with its own key names.
    """
    model = checkpoint["model"]
    return {"model": {key: value for key, value in model.items() if LST.rename(key.removeprefix(PREFIX))[1] is None}}

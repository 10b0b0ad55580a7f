"""Checkpoints of the LST repository (a maskrcnn-benchmark fork) under mmdet's names.

Source: JoyHuYY1412/LST_LVIS. There, row 0 of the classifier is background and the box regressor has four rows for it;
here background is the last classifier row and the regressor has none. Converted weights want the geometry they were
trained with (RoIAlign without half-pixel shift, sampling ratio 2, boxes with +1, Caffe-style input normalisation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ltpipe.errors import UserError

PREFIX = "module."
KEYS = [
    (r"backbone\.body\.stem\.(conv1|bn1)\.", r"backbone.\1."),
    (r"backbone\.body\.(layer\d)\.", r"backbone.\1."),
    (r"backbone\.fpn\.fpn_inner(?P<index>\d)\.", "neck.lateral_convs.{index}.conv."),
    (r"backbone\.fpn\.fpn_layer(?P<index>\d)\.", "neck.fpn_convs.{index}.conv."),
    (r"rpn\.head\.conv\.", "rpn_head.rpn_conv."),
    (r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"roi_heads\.box\.feature_extractor\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"roi_heads\.box\.feature_extractor\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"roi_heads\.box\.predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"roi_heads\.box\.predictor\.scale_cls$", "roi_head.bbox_head.fc_cls.scale"),
    (r"roi_heads\.box\.predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"roi_heads\.mask\.feature_extractor\.mask_fcn(?P<index>\d)\.", "roi_head.mask_head.convs.{index}.conv."),
    (r"roi_heads\.mask\.predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
    (r"roi_heads\.mask\.predictor\.MLP_mask\.", "roi_head.mask_head.mlp_fusion."),
    (r"roi_heads\.bbox2mask\.", "roi_head.mask_head.weight_transfer."),
]
DROPPED = "rpn.anchor_generator.cell_anchors."
CLASS_LAYERS = ("box.predictor.cls_score.", "box.predictor.bbox_pred.", "mask.predictor.mask_fcn_logits.")


def background_last(rows: Tensor) -> Tensor:
    """Move the first row of ``(C, ...)`` to the end."""
    return torch.cat([rows[1:], rows[:1]])


def background_first(rows: Tensor) -> Tensor:
    """Move the last row of ``(C, ...)`` to the front."""
    return torch.cat([rows[-1:], rows[:-1]])


def rename_key(key: str) -> str | None:
    """Return mmdet's name of a source key (with or without ``module.``), or None for what mmdet does not store.

    Raises:
        UserError: Unknown key.
    """
    source = key.removeprefix(PREFIX)
    if source.startswith(DROPPED):
        return None
    for pattern, replacement in KEYS:
        if found := re.match(pattern, source):
            index = found.groupdict().get("index")
            # The source counts levels and convolutions from 1.
            target = replacement.format(index=int(index) - 1) if index else found.expand(replacement)
            return target + source[found.end() :]
    raise UserError("unknown checkpoint key", got=key, allowed="keys of the LST repository's Mask R-CNN with FPN")


def convert_state_dict(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a source model state in mmdet's names and class order.

    Args:
        source: The ``model`` entry of a checkpoint.

    Raises:
        UserError: Unknown key.
    """
    converted: dict[str, Tensor] = {}
    for key, value in source.items():
        target = rename_key(key)
        if target is None:
            continue
        if target.startswith("roi_head.bbox_head.fc_reg."):
            value = value[4:]
        elif target.startswith("roi_head.mask_head.conv_logits."):
            value = value[1:]
        elif target in ("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"):
            value = background_last(value)
        converted[target] = value
    return converted


def trim_class_layers(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"model": ...}`` without the class-dependent layers, optimiser, scheduler and iteration.

    Args:
        checkpoint: Source checkpoint, e.g. the COCO detector LST starts from, with its own key names.
    """
    heads = tuple(f"roi_heads.{layer}" for layer in CLASS_LAYERS)
    model = checkpoint["model"]
    return {"model": {key: value for key, value in model.items() if not key.removeprefix(PREFIX).startswith(heads)}}

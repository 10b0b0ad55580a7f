"""Released SimCal checkpoints (mmdetection 1.x, background first) to mmdet 3.x keys with the background last.

Source: repository twangnh/SimCal. Old class 0 is the background and old classes 1..K are labels 0..K-1, so classifier
rows rotate by one; class-wise box regressors and mask predictors lose their background block, which is the first one;
the RPN, class-agnostic layers and the semantic head stay. mmdetection's ``upgrade_model_version.py`` drops the wrong
end of the biases and also rotates ``rpn_cls``: do not use it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ltpipe.errors import UserError

State = dict[str, Tensor]

_HEADS = ("bbox_head.", "mask_head.", "semantic_head.")
_OLD_LAYERS = {
    "feat_classifier.fc1": "fc1",
    "feat_classifier.fc2": "fc2",
    "feat_classifier.fc_classifier": "fc_cls",
    "feat_extractor.fc1": "fc1",
    "feat_extractor.fc2": "fc_cls",
}


def background_last(rows: Tensor, dim: int = 0) -> Tensor:
    """Return ``rows`` with the first of the K + 1 entries along ``dim``, the background's, moved to the end."""
    return torch.roll(rows, -1, dims=dim)


def convert_detector(state: Mapping[str, Tensor]) -> State:
    """Convert the ``state_dict`` of a base detector (Mask R-CNN, or HTC with one head per stage).

    Args:
        state: Old keys, e.g. ``bbox_head.fc_cls.weight`` ``(K + 1, d)``.

    Raises:
        UserError: A class-wise layer has neither one block nor one per class.
    """
    sizes = {v.shape[0] for k, v in state.items() if re.search(r"(^|\.)bbox_head\.(\d+\.)?fc_cls\.", k)}
    if len(sizes) != 1:
        raise UserError(
            "not a SimCal base checkpoint",
            got=f"classifiers with {sorted(sizes)} outputs",
            allowed="bbox_head.fc_cls (or bbox_head.<stage>.fc_cls) with one number of outputs",
        )
    outputs = sizes.pop()
    converted = {}
    for key, value in state.items():
        name = key.replace("conv2_offset.", "conv2.conv_offset.")
        if name.startswith("bbox_head.") and ".fc_cls." in name:
            value = background_last(value)
        elif name.startswith("bbox_head.") and ".fc_reg." in name:
            value = _without_background(key, value, outputs, block=4)
        elif name.startswith("mask_head.") and ".conv_logits." in name:
            value = _without_background(key, value, outputs, block=1)
        converted[f"roi_head.{name}" if name.startswith(_HEADS) else name] = value.clone()
    return converted


def convert_calibrated_head(state: Mapping[str, Tensor], prefix: str = "roi_head.calibrator.") -> State:
    """Convert the ``state_dict`` of a calibrated head (``3fc_ft.pth`` and the like).

    Args:
        state: Old keys, ``feat_classifier.*`` with two hidden layers or ``feat_extractor.*`` with one.
        prefix: Where the head sits in the detector.

    Raises:
        UserError: A key is none of these.
    """
    converted = {}
    for key, value in state.items():
        layer, _, part = key.rpartition(".")
        if layer not in _OLD_LAYERS:
            raise UserError("not a calibrated head of SimCal", got=key, allowed=[f"{k}.weight" for k in _OLD_LAYERS])
        name = _OLD_LAYERS[layer]
        converted[f"{prefix}{name}.{part}"] = background_last(value) if name == "fc_cls" else value.clone()
    return converted


def _without_background(key: str, value: Tensor, outputs: int, block: int) -> Tensor:
    if value.shape[0] == block:
        return value
    if value.shape[0] != block * outputs:
        raise UserError(
            "unexpected number of outputs", where=key, got=value.shape[0], allowed=f"{block} or {block * outputs}"
        )
    return value[block:]

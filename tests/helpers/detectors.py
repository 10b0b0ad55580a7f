"""Detectors of the tests in this folder: built, trained for a step, asked for detections."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ltpipe.registry import MODELS

CLASSES = 9


def probabilities(head: Any, cls_score: Tensor) -> Tensor:
    """Return the scores ``(n, K + 1)`` of a box head's classifier outputs, as mmdet makes them."""
    return head.loss_cls.get_activation(cls_score) if head.custom_activation else cls_score.softmax(dim=1)


def built(config: ConfigDict) -> nn.Module:
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(config))
    for parameter in model.parameters():  # fresh heads are nearly zero, which hides differences
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def losses_of(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(7)
    return model.train()(**model.data_preprocessor(copy.deepcopy(batch), True), mode="loss")


def total(losses: dict[str, Any]) -> Tensor:
    parts = [value for name, value in losses.items() if "loss" in name]
    return torch.stack([sum(part).sum() if isinstance(part, list) else part.sum() for part in parts]).sum()


def detections_of(model: nn.Module, batch: dict[str, Any]) -> list[DetDataSample]:
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    for sample in data["data_samples"]:
        sample.set_metainfo({"flip": False})  # mmdet's own cascade would flip the masks back
    with torch.no_grad():
        return model.eval()(**data, mode="predict")

"""Detectors without memory for their weights."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from ltpipe.registry import MODELS


def without_weights(model: ConfigDict) -> Any:
    """Build a detector on the meta device, or on the CPU if a component computes while it is constructed."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        try:
            with torch.device("meta"):
                return MODELS.build(model)
        except RuntimeError:
            return MODELS.build(model)

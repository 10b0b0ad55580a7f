"""Whole states in the layouts of other repositories, as ``ltpipe convert`` reads them inside of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ltpipe.interop.layout import State, apply_layout
from ltpipe.interop.maskrcnn_benchmark import LST
from ltpipe.interop.mmdet1 import MMDET1

PREFIX = "module."


def background_first(rows: Tensor) -> Tensor:
    """Move the background row to the front."""
    return rows.roll(1, dims=0)


def rename_key(key: str) -> str | None:
    """Return mmdet's name of a key of LST (with or without ``module.``), or None for what mmdet does not store."""
    return LST.rename(key.removeprefix(PREFIX))[0]


def convert_state_dict(source: Mapping[str, Tensor]) -> State:
    """Return the ``model`` entry of a checkpoint of LST in mmdet's names and class order."""
    return apply_layout(LST, {key.removeprefix(PREFIX): value for key, value in source.items()})


def trim_class_layers(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"model": ...}`` without the class-dependent layers, with its own key names."""
    model = checkpoint["model"]
    return {"model": {key: value for key, value in model.items() if LST.rename(key.removeprefix(PREFIX))[1] is None}}


def convert_detector(state: Mapping[str, Tensor]) -> State:
    """Return the ``state_dict`` of a base detector of SimCal (Mask R-CNN, or HTC with one head per stage)."""
    (outputs,) = {len(value) for key, value in state.items() if MMDET1.rename(key)[1] == "classifier"}
    return apply_layout(MMDET1, state, outputs=outputs)

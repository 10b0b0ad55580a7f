"""Training in half precision or with less memory: what is computed in it, what stays in float32, what counts once.

Backbone, neck and heads run under autocast. Losses, the targets they are compared with, the choice of boxes, the
statistics of all methods, classifiers and mmcv's compiled operations (which know no bfloat16 and no memory order but
their own) are computed in float32. No method knows of this: the places where mmdet calls them are guarded from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import wraps
from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

from ltpipe.errors import UserError
from ltpipe.methods.head_parts import BoxBatch, HeadPart, MaskBatch
from ltpipe.methods.reductions import bare_model
from ltpipe.registry import HOOKS, OPTIM_WRAPPERS

_GUARDED = ("loss_by_feat", "loss_and_target", "predict_by_feat", "refine_bboxes")
_OF_PARTS = ("before_images", "before_losses", "box_losses", "mask_losses", "image_losses")


@OPTIM_WRAPPERS.register_module()
class HalfPrecision(AmpOptimWrapper):
    """mmengine's mixed precision, which also runs on the CPU (bfloat16) and scales losses for float16 only.

    Args:
        dtype: ``bfloat16`` or ``float16``.
        **kwargs: See ``mmengine.optim.OptimWrapper``.

    Raises:
        UserError: float16 without a GPU.
    """

    def __init__(self, dtype: str, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            scale: Any = "dynamic" if dtype == "float16" else {"enabled": False}
            super().__init__(loss_scale=scale, dtype=dtype, **kwargs)
            return
        if dtype == "float16":
            raise UserError(
                "float16 needs a GPU", where="schedule.precision", got="fp16, and no GPU", allowed="bf16 or fp32"
            )
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = GradScaler("cpu", enabled=False)
        self.cast_dtype = torch.bfloat16


@HOOKS.register_module()
class NumericsHook(Hook):
    """Prepares a detector for half precision and for another memory order; nothing of it is part of its state.

    Args:
        channels_last: Whether the weights of convolutions are reordered, and so what they compute.
        recomputes: Whether the backbone runs twice per step, the first time without gradients.
    """

    priority = "VERY_HIGH"

    def __init__(self, channels_last: bool = False, recomputes: bool = False) -> None:
        self.channels_last, self.recomputes = channels_last, recomputes

    def before_train(self, runner: Runner) -> None:
        """Guard what must stay in float32, and running statistics."""
        model = bare_model(runner)
        guard(model)
        if self.recomputes:
            count_once(model.backbone)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)


def guard(model: nn.Module) -> None:
    """Have a detector compute losses, statistics, classifiers and compiled operations in float32 under autocast.

    Args:
        model: The detector, changed in place; its state stays as it is.
    """
    for module in model.modules():
        compiled = isinstance(module, BaseRoIExtractor) or type(module).__module__.startswith("mmcv.ops")
        names = ("forward",) if compiled else _OF_PARTS if isinstance(module, HeadPart) else _GUARDED
        for name in names:
            if hasattr(module, name):
                setattr(module, name, in_float32(getattr(module, name)))
        classifier = getattr(module, "fc_cls", None)
        if isinstance(classifier, nn.Module):
            classifier.forward = in_float32(classifier.forward)


def count_once(backbone: nn.Module) -> None:
    """Have normalisation layers update their running statistics only in the pass with gradients.

    Args:
        backbone: Changed in place; its state stays as it is.
    """

    def counting_once(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        forward = layer.forward

        def inside(x: Tensor) -> Tensor:
            if torch.is_grad_enabled() or not layer.training:
                return forward(x)
            before = [buffer.clone() for buffer in layer.buffers()]
            found: Tensor = forward(x)
            for buffer, value in zip(layer.buffers(), before, strict=True):
                buffer.copy_(value)
            return found

        return inside

    for layer in backbone.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = counting_once(layer)  # type: ignore[method-assign, assignment]


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes in float32 under autocast: its tensors are converted, autocast is off inside.

    Args:
        function: Any function of tensors, in lists, tuples and mappings or not.
    """

    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_device_of(args, kwargs) or get_device(), enabled=False):
            return function(*_plain(args), **_plain(kwargs))

    return inside


def _device_of(*values: Any) -> str:
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        if found := _device_of(*inner):
            return found
    return ""


def _plain(value: Any) -> Any:
    """Return values with half-precision tensors as float32, and feature maps in the usual memory order."""
    if isinstance(value, Tensor):
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        return value.contiguous() if value.dim() == 4 else value
    if type(value) is dict:
        return {key: _plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(inner) for inner in value)
    if isinstance(value, BoxBatch | MaskBatch):
        return replace(value, **{field.name: _plain(getattr(value, field.name)) for field in fields(value)})
    return value

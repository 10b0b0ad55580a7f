"""Other repositories' Mask R-CNN as plain functions of their own checkpoints, to compare converted ones with.

Nothing here reads ltpipe's tables: names and row orders are written down again from the repositories.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ltpipe.registry import MODELS

K, CHANNELS, WIDTH = 3, 8, 12
BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}
Get = Callable[[str], Tensor]


def model_config(*, class_wise: bool = True, classifier: dict[str, Any] | None = None, **heads: Any) -> ConfigDict:
    """Return our config of the detector, ResNet-50 with 4 channels."""
    extractor = dict(
        type="mmdet.SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
        out_channels=CHANNELS,
        featmap_strides=[4, 8, 16, 32],
    )
    box = dict(
        type="ltpipe.LTBBoxHead",
        in_channels=CHANNELS,
        roi_feat_size=7,
        fc_out_channels=WIDTH,
        num_classes=K,
        reg_class_agnostic=not class_wise,
        cls_predictor_cfg=classifier or dict(type="ltpipe.LinearClassifier"),
        loss_cls=heads.get("loss", dict(type="ltpipe.SoftmaxLoss")),
        bbox_coder=dict(type="mmdet.DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    )
    mask = dict(
        type="mmdet.FCNMaskHead",
        num_convs=4,
        in_channels=CHANNELS,
        conv_out_channels=CHANNELS,
        num_classes=K,
        class_agnostic=not class_wise,
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_mask=True),
    )
    mask.update(heads.get("mask", {}))
    anchors = dict(type="mmdet.AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64])
    return ConfigDict(
        type="mmdet.MaskRCNN",
        data_preprocessor=dict(type="mmdet.DetDataPreprocessor"),
        backbone=dict(
            type="mmdet.ResNet",
            depth=50,
            base_channels=4,
            stem_channels=4,
            norm_cfg=dict(type="BN", requires_grad=False),
            norm_eval=True,
            style=heads.get("style", "pytorch"),
        ),
        neck=dict(type="mmdet.FPN", in_channels=[16, 32, 64, 128], out_channels=CHANNELS, num_outs=5),
        rpn_head=dict(
            type="mmdet.RPNHead",
            in_channels=CHANNELS,
            feat_channels=CHANNELS,
            anchor_generator=anchors,
            bbox_coder=dict(type="mmdet.DeltaXYWHBBoxCoder"),
            loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True),
            loss_bbox=dict(type="mmdet.L1Loss"),
        ),
        roi_head=dict(
            type="ltpipe.LTRoIHead",
            bbox_roi_extractor=extractor,
            bbox_head=box,
            mask_roi_extractor={**extractor, "roi_layer": {**extractor["roi_layer"], "output_size": 14}},
            mask_head=mask,
            **({"parts": heads["parts"]} if "parts" in heads else {}),
        ),
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(nms_pre=50, max_per_img=20, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10, mask_thr_binary=0.5),
        ),
    )


def build(config: ConfigDict) -> nn.Module:
    """Build a detector in evaluation mode."""
    return MODELS.build(config).eval()


@dataclass(frozen=True)
class Old:
    """A repository's detector.

    Attributes:
        key: Its name of a tensor that mmdet 3.x calls by the argument.
        background_first: Whether row 0 is the background.
        eps: Added to the variance of batch norm.
        style: Which convolution of a block has the stride: ``caffe`` the first, ``pytorch`` the second.
    """

    key: Callable[[str], str]
    background_first: bool
    eps: float
    style: str

    def state(self, model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
        """Return a random checkpoint of it, with the shapes of our detector and rows for the background."""
        draw = torch.Generator().manual_seed(seed)
        found = {}
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            shape = list(value.shape)
            if self.background_first and re.search(r"fc_reg\.", name) and shape[0] > 4:
                shape[0] += 4
            if self.background_first and re.search(r"conv_logits\.", name) and shape[0] > 1:
                shape[0] += 1
            fan_in = max(1, math.prod(shape[1:]))
            tensor = torch.randn(shape, generator=draw) / fan_in**0.5
            # Small variances, so that what is added to them shows.
            if name.endswith("running_var"):
                tensor = 0.01 + 0.1 * torch.rand(shape, generator=draw)
            elif re.search(r"(bn\d|downsample\.1)\.weight$", name):
                tensor = 0.1 + 0.2 * torch.rand(shape, generator=draw)
            found[self.key(name)] = tensor
        return found


def _replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def key(name: str) -> str:
        for pattern, replacement in pairs:
            new, hits = re.subn(pattern, replacement, name)
            if hits:
                return new
        return name

    return key


def _plus(name: str, pattern: str, by: int, target: str) -> str:
    return re.sub(pattern, lambda m: target.format(int(m[1]) + by), name)


def mmdet1_key(name: str) -> str:
    """Return mmdetection 1.x's name."""
    return name.removeprefix("roi_head.")


def benchmark_key(name: str) -> str:
    """Return maskrcnn-benchmark's name, as saved by parallel training."""
    name = re.sub(r"^backbone\.(conv1|bn1)", r"backbone.body.stem.\1", name)
    name = re.sub(r"^backbone\.layer", "backbone.body.layer", name)
    name = _plus(name, r"^neck\.lateral_convs\.(\d)\.conv", 1, "backbone.fpn.fpn_inner{}")
    name = _plus(name, r"^neck\.fpn_convs\.(\d)\.conv", 1, "backbone.fpn.fpn_layer{}")
    name = _plus(name, r"^roi_head\.mask_head\.convs\.(\d)\.conv", 1, "roi_heads.mask.feature_extractor.mask_fcn{}")
    name = _plus(name, r"^roi_head\.bbox_head\.shared_fcs\.(\d)", 6, "roi_heads.box.feature_extractor.fc{}")
    for ours, theirs in (
        ("rpn_head.rpn_conv", "rpn.head.conv"),
        ("rpn_head.rpn_cls", "rpn.head.cls_logits"),
        ("rpn_head.rpn_reg", "rpn.head.bbox_pred"),
        ("roi_head.bbox_head.fc_cls.scale", "roi_heads.box.predictor.scale_cls"),
        ("roi_head.bbox_head.fc_cls", "roi_heads.box.predictor.cls_score"),
        ("roi_head.bbox_head.fc_reg", "roi_heads.box.predictor.bbox_pred"),
        ("roi_head.mask_head.upsample", "roi_heads.mask.predictor.conv5_mask"),
        ("roi_head.mask_head.conv_logits", "roi_heads.mask.predictor.mask_fcn_logits"),
        ("roi_head.mask_head.mlp_fusion", "roi_heads.mask.predictor.MLP_mask"),
        ("roi_head.mask_head.weight_transfer", "roi_heads.bbox2mask"),
    ):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    return f"module.{name}"


def detectron2_key(name: str) -> str:
    """Return detectron2's name."""
    name = re.sub(r"^backbone\.conv1", "backbone.bottom_up.stem.conv1", name)
    name = re.sub(r"^backbone\.bn1", "backbone.bottom_up.stem.conv1.norm", name)
    name = _plus(name, r"^backbone\.layer(\d)", 1, "backbone.bottom_up.res{}")
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    name = _plus(name, r"^neck\.lateral_convs\.(\d)\.conv", 2, "backbone.fpn_lateral{}")
    name = _plus(name, r"^neck\.fpn_convs\.(\d)\.conv", 2, "backbone.fpn_output{}")
    name = _plus(name, r"^roi_head\.mask_head\.convs\.(\d)\.conv", 1, "roi_heads.mask_head.mask_fcn{}")
    name = _plus(name, r"^roi_head\.bbox_head\.shared_fcs\.(\d)", 1, "roi_heads.box_head.fc{}")
    return _replaced(
        (r"^rpn_head\.rpn_conv", "proposal_generator.rpn_head.conv"),
        (r"^rpn_head\.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
        (r"^rpn_head\.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
        (r"^roi_head\.bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
        (r"^roi_head\.bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
        (r"^roi_head\.mask_head\.upsample", "roi_heads.mask_head.deconv"),
        (r"^roi_head\.mask_head\.conv_logits", "roi_heads.mask_head.predictor"),
    )(name)


def torchvision_key(name: str) -> str:
    """Return torchvision's name, since version 0.13."""
    name = re.sub(r"^backbone\.", "backbone.body.", name)
    name = re.sub(r"^neck\.lateral_convs\.(\d)\.conv", r"backbone.fpn.inner_blocks.\1.0", name)
    name = re.sub(r"^neck\.fpn_convs\.(\d)\.conv", r"backbone.fpn.layer_blocks.\1.0", name)
    name = re.sub(r"^roi_head\.mask_head\.convs\.(\d)\.conv", r"roi_heads.mask_head.\1.0", name)
    name = _plus(name, r"^roi_head\.bbox_head\.shared_fcs\.(\d)", 6, "roi_heads.box_head.fc{}")
    return _replaced(
        (r"^rpn_head\.rpn_conv", "rpn.head.conv.0.0"),
        (r"^rpn_head\.rpn_cls", "rpn.head.cls_logits"),
        (r"^rpn_head\.rpn_reg", "rpn.head.bbox_pred"),
        (r"^roi_head\.bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
        (r"^roi_head\.bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
        (r"^roi_head\.mask_head\.upsample", "roi_heads.mask_predictor.conv5_mask"),
        (r"^roi_head\.mask_head\.conv_logits", "roi_heads.mask_predictor.mask_fcn_logits"),
    )(name)


def old_torchvision_key(name: str) -> str:
    """Return torchvision's name before version 0.13."""
    name = _plus(torchvision_key(name), r"roi_heads\.mask_head\.(\d)\.0", 1, "roi_heads.mask_head.mask_fcn{}")
    return re.sub(r"(blocks\.\d|rpn\.head\.conv\.0)\.0", r"\1", name).replace("rpn.head.conv.0", "rpn.head.conv")


OLD = {
    "mmdet1": Old(mmdet1_key, True, 1e-5, "pytorch"),
    "mmdet2": Old(lambda name: name, False, 1e-5, "pytorch"),
    "benchmark": Old(benchmark_key, True, 0.0, "caffe"),
    "detectron2": Old(detectron2_key, False, 1e-5, "caffe"),
    "torchvision": Old(torchvision_key, True, 0.0, "pytorch"),
    "torchvision_old": Old(old_torchvision_key, True, 0.0, "pytorch"),
}


@dataclass(frozen=True)
class Outputs:
    """What a detector computes, by class and without the order of the rows.

    Attributes:
        rpn: Objectness and deltas of every level.
        background: ``(N,)`` logit of the background.
        classes: ``(N, K)`` logits.
        deltas: ``(N, K, 4)``, or ``(N, 1, 4)`` for all classes.
        masks: ``(N, K, 28, 28)`` logits, or ``(N, 1, 28, 28)``.
    """

    rpn: list[Tensor]
    background: Tensor
    classes: Tensor
    deltas: Tensor
    masks: Tensor


def forward(old: Old, state: dict[str, Tensor], image: Tensor, box: Tensor, mask: Tensor) -> Outputs:
    """Compute an old detector from its checkpoint.

    Args:
        old: The repository.
        state: Its checkpoint.
        image: ``(B, 3, H, W)`` float, normalised.
        box: ``(N, c, 7, 7)`` float, pooled features of the box head.
        mask: ``(N, c, 14, 14)`` float, of the mask head.
    """

    def get(name: str) -> Tensor:
        return state[old.key(name)]

    return heads(old, get, pyramid(old, get, image), box, mask)


def pyramid(old: Old, get: Get, image: Tensor) -> list[Tensor]:
    """Return the five maps of the feature pyramid."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias"))
        scale = weight / (var + old.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    x = F.conv2d(image, get("backbone.conv1.weight"), stride=2, padding=3)
    x = F.max_pool2d(norm(x, "backbone.bn1").relu(), 3, 2, 1)
    maps = []
    for layer, blocks in BLOCKS.items():
        for block in range(blocks):
            here = f"backbone.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            first, second = (stride, 1) if old.style == "caffe" else (1, stride)
            y = norm(F.conv2d(x, get(f"{here}.conv1.weight"), stride=first), f"{here}.bn1").relu()
            y = norm(F.conv2d(y, get(f"{here}.conv2.weight"), stride=second, padding=1), f"{here}.bn2").relu()
            y = norm(F.conv2d(y, get(f"{here}.conv3.weight")), f"{here}.bn3")
            if block == 0:
                x = norm(F.conv2d(x, get(f"{here}.downsample.0.weight"), stride=stride), f"{here}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    tops: list[Tensor] = []
    for level in (3, 2, 1, 0):
        here = f"neck.lateral_convs.{level}.conv"
        lateral = F.conv2d(maps[level], get(f"{here}.weight"), get(f"{here}.bias"))
        tops.insert(0, lateral if not tops else lateral + F.interpolate(tops[0], scale_factor=2, mode="nearest"))
    found = []
    for level, top in enumerate(tops):
        here = f"neck.fpn_convs.{level}.conv"
        found.append(F.conv2d(top, get(f"{here}.weight"), get(f"{here}.bias"), padding=1))
    return [*found, found[-1][..., ::2, ::2]]


def heads(old: Old, get: Get, maps: list[Tensor], box: Tensor, mask: Tensor) -> Outputs:
    """Compute the three heads."""
    rpn = []
    for level in maps:
        here = "rpn_head.rpn_conv"
        x = F.conv2d(level, get(f"{here}.weight"), get(f"{here}.bias"), padding=1).relu()
        rpn += [F.conv2d(x, get(f"rpn_head.{n}.weight"), get(f"rpn_head.{n}.bias")) for n in ("rpn_cls", "rpn_reg")]
    x = box.flatten(1)
    for number in (0, 1):
        here = f"roi_head.bbox_head.shared_fcs.{number}"
        x = F.linear(x, get(f"{here}.weight"), get(f"{here}.bias")).relu()
    logits, deltas = (
        F.linear(x, get(f"roi_head.bbox_head.{n}.weight"), get(f"roi_head.bbox_head.{n}.bias"))
        for n in ("fc_cls", "fc_reg")
    )
    y = mask
    for number in range(4):
        here = f"roi_head.mask_head.convs.{number}.conv"
        y = F.conv2d(y, get(f"{here}.weight"), get(f"{here}.bias"), padding=1).relu()
    here = "roi_head.mask_head.upsample"
    y = F.conv_transpose2d(y, get(f"{here}.weight"), get(f"{here}.bias"), stride=2).relu()
    here = "roi_head.mask_head.conv_logits"
    masks = F.conv2d(y, get(f"{here}.weight"), get(f"{here}.bias"))
    deltas = deltas.unflatten(1, (-1, 4))
    if old.background_first:
        skip = [slice(1 if value.shape[1] > 1 else 0, None) for value in (deltas, masks)]
        return Outputs(rpn, logits[:, 0], logits[:, 1:], deltas[:, skip[0]], masks[:, skip[1]])
    return Outputs(rpn, logits[:, -1], logits[:, :-1], deltas, masks)


@torch.no_grad()
def ours(model: nn.Module, image: Tensor, box: Tensor, mask: Tensor) -> Outputs:
    """Compute our detector; arguments as of :func:`forward`."""
    maps = model.extract_feat(image)
    rpn = [x for pair in zip(*model.rpn_head(maps), strict=True) for x in pair]
    logits, deltas = model.roi_head.bbox_head(box)
    return Outputs(rpn, logits[:, -1], logits[:, :-1], deltas.unflatten(1, (-1, 4)), model.roi_head.mask_head(mask))


def random_inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image and pooled features of five RoIs."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((1, 3, 64, 96), (5, CHANNELS, 7, 7), (5, CHANNELS, 14, 14))
    image, box, mask = (torch.randn(shape, generator=draw) for shape in shapes)
    return image, box, mask


def assert_same(one: Outputs, other: Outputs) -> None:
    """Compare all outputs."""
    for a, b in zip(one.rpn, other.rpn, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name in ("background", "classes", "deltas", "masks"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)

"""Checkpoints that trainings start from: detectron2, torchvision, and Caffe2's ImageNet weights.

Key names of facebookresearch/detectron2 (``modeling`` and ``checkpoint/c2_model_loading.py``) and of torchvision's
detection models. detectron2 has the background last, torchvision first. torchvision's released detectors and Caffe2's
affine channels divide by the variance as it is, detectron2 adds what mmdet adds.
"""

from __future__ import annotations

import re

import torch

from ltpipe.convert.layout import NORM_EPS, Layout, Rule, State

_BOX, _MASK = "roi_head.bbox_head.", "roi_head.mask_head."
_BLOCKS = (
    Rule(r"(?:backbone\.bottom_up\.)?stem\.conv1\.norm\.", "backbone.bn1."),
    Rule(r"(?:backbone\.bottom_up\.)?stem\.conv1\.", "backbone.conv1."),
    Rule(r"(?:backbone\.bottom_up\.)?res(?P<minus1>\d)\.(\d+)\.conv(\d)\.norm\.", r"backbone.layer{minus1}.\2.bn\3."),
    Rule(r"(?:backbone\.bottom_up\.)?res(?P<minus1>\d)\.(\d+)\.conv(\d)\.", r"backbone.layer{minus1}.\2.conv\3."),
    Rule(
        r"(?:backbone\.bottom_up\.)?res(?P<minus1>\d)\.(\d+)\.shortcut\.norm\.",
        r"backbone.layer{minus1}.\2.downsample.1.",
    ),
    Rule(r"(?:backbone\.bottom_up\.)?res(?P<minus1>\d)\.(\d+)\.shortcut\.", r"backbone.layer{minus1}.\2.downsample.0."),
)
DETECTRON2 = Layout(
    name="detectron2",
    title="detectron2 Faster and Mask R-CNN with FPN",
    marks=(r"backbone\.bottom_up\.", r"proposal_generator\."),
    rules=(
        *_BLOCKS,
        Rule(r"backbone\.fpn_lateral(?P<minus2>\d)\.", "neck.lateral_convs.{minus2}.conv."),
        Rule(r"backbone\.fpn_output(?P<minus2>\d)\.", "neck.fpn_convs.{minus2}.conv."),
        Rule(r"proposal_generator\.rpn_head\.conv\.", "rpn_head.rpn_conv."),
        Rule(r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn_head.rpn_cls."),
        Rule(r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
        Rule(r"roi_heads\.box_head\.fc(?P<minus1>\d)\.", f"{_BOX}shared_fcs.{{minus1}}."),
        Rule(r"roi_heads\.box_predictor\.cls_score\.", f"{_BOX}fc_cls.", "classifier"),
        Rule(r"roi_heads\.box_predictor\.bbox_pred\.", f"{_BOX}fc_reg.", "regressor"),
        Rule(r"roi_heads\.mask_head\.mask_fcn(?P<minus1>\d)\.", f"{_MASK}convs.{{minus1}}.conv."),
        Rule(r"roi_heads\.mask_head\.deconv\.", f"{_MASK}upsample."),
        Rule(r"roi_heads\.mask_head\.predictor\.", f"{_MASK}conv_logits.", "mask"),
        Rule(r"proposal_generator\.anchor_generator\.|pixel_(mean|std)$", None),
    ),
    labels="id",
)
DETECTRON2_BACKBONE = Layout(
    name="detectron2_backbone",
    title="an ImageNet ResNet of detectron2's model zoo",
    marks=(r"stem\.conv1\.", r"res2\.0\.conv1\."),
    rules=(*_BLOCKS, Rule(r"(stem\.)?(fc|linear)\d*\.", None)),
)


def _caffe2_rules() -> tuple[Rule, ...]:
    unit = r"res(?P<minus1>\d)_(\d+)_"
    rules = [
        Rule(r"conv1_w$", "backbone.conv1.weight"),
        Rule(r"res_conv1_bn_s$", "backbone.bn1.weight"),
        Rule(r"res_conv1_bn_b$", "backbone.bn1.bias"),
        Rule(unit + r"branch1_w$", r"backbone.layer{minus1}.\2.downsample.0.weight"),
        Rule(unit + r"branch1_bn_s$", r"backbone.layer{minus1}.\2.downsample.1.weight"),
        Rule(unit + r"branch1_bn_b$", r"backbone.layer{minus1}.\2.downsample.1.bias"),
    ]
    for number, letter in enumerate("abc", 1):
        rules += [
            Rule(rf"{unit}branch2{letter}_w$", rf"backbone.layer{{minus1}}.\2.conv{number}.weight"),
            Rule(rf"{unit}branch2{letter}_bn_s$", rf"backbone.layer{{minus1}}.\2.bn{number}.weight"),
            Rule(rf"{unit}branch2{letter}_bn_b$", rf"backbone.layer{{minus1}}.\2.bn{number}.bias"),
        ]
    return (*rules, Rule(r"(fc\d+|pred)_|.*_momentum$|lr$|conv1_b$", None))


CAFFE2 = Layout(
    name="caffe2",
    title="an ImageNet ResNet of Caffe2 (MSRA), as detectron2 and maskrcnn-benchmark start from",
    marks=(r"conv1_w$", r"res2_0_branch2a_w$"),
    rules=_caffe2_rules(),
)
TORCHVISION = Layout(
    name="torchvision",
    title="torchvision Faster and Mask R-CNN with FPN",
    marks=(r"backbone\.body\.layer1\.", r"backbone\.fpn\.inner_blocks\."),
    rules=(
        Rule(r"backbone\.body\.", "backbone."),
        Rule(r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?", r"neck.lateral_convs.\1.conv."),
        Rule(r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?", r"neck.fpn_convs.\1.conv."),
        Rule(r"rpn\.head\.conv\.(?:0\.0\.)?", "rpn_head.rpn_conv."),
        Rule(r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
        Rule(r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
        Rule(r"roi_heads\.box_head\.fc6\.", f"{_BOX}shared_fcs.0."),
        Rule(r"roi_heads\.box_head\.fc7\.", f"{_BOX}shared_fcs.1."),
        Rule(r"roi_heads\.box_predictor\.cls_score\.", f"{_BOX}fc_cls.", "classifier"),
        Rule(r"roi_heads\.box_predictor\.bbox_pred\.", f"{_BOX}fc_reg.", "regressor"),
        Rule(r"roi_heads\.mask_head\.mask_fcn(?P<minus1>\d)\.", f"{_MASK}convs.{{minus1}}.conv."),
        Rule(r"roi_heads\.mask_head\.(\d)\.0\.", rf"{_MASK}convs.\1.conv."),
        Rule(r"roi_heads\.mask_predictor\.conv5_mask\.", f"{_MASK}upsample."),
        Rule(r"roi_heads\.mask_predictor\.mask_fcn_logits\.", f"{_MASK}conv_logits.", "mask"),
    ),
    background="first",
    labels="row",
    norm_without_eps=True,
)
TORCHVISION_BACKBONE = Layout(
    name="torchvision_backbone",
    title="an ImageNet ResNet or ResNeXt of torchvision",
    marks=(r"conv1\.weight$", r"layer1\.0\.conv1\.weight$"),
    rules=(Rule(r"(conv1|bn1|layer\d)\.", r"backbone.\1."), Rule(r"fc\.", None)),
)


def with_affine_statistics(state: State) -> State:
    """Return Caffe2's affine channels as batch norm: mean 0, and a variance that makes the divisor 1."""
    filled = dict(state)
    for key, value in state.items():
        if re.search(r"(bn\d|downsample\.1)\.weight$", key):
            filled[key.replace(".weight", ".running_mean")] = torch.zeros_like(value)
            filled[key.replace(".weight", ".running_var")] = torch.ones_like(value) - NORM_EPS
    return filled

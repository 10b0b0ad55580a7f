"""Checkpoints of maskrcnn-benchmark, and of the LST repository, which is a fork of it.

Source: JoyHuYY1412/LST_LVIS. There, row 0 of the classifier is background and the box regressor has four rows for it;
here background is the last classifier row and the regressor has none. Frozen batch norm divides by the variance as it
is, so converted variances are smaller by what mmdet's adds.
"""

from __future__ import annotations

from ltpipe.interop.layout import Layout, Rule

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

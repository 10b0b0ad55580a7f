"""Conversion of LST checkpoints: names, rows, refusals."""

from __future__ import annotations

import pytest
import torch

from ltpipe.errors import UserError
from ltpipe.interop.layout import background_last
from tests.published.old_layouts import background_first, convert_state_dict, rename_key, trim_class_layers


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("module.backbone.body.stem.bn1.running_var", "backbone.bn1.running_var"),
        ("backbone.body.layer3.5.conv2.weight", "backbone.layer3.5.conv2.weight"),
        ("backbone.body.layer1.0.downsample.1.bias", "backbone.layer1.0.downsample.1.bias"),
        ("backbone.fpn.fpn_inner4.bias", "neck.lateral_convs.3.conv.bias"),
        ("backbone.fpn.fpn_layer1.weight", "neck.fpn_convs.0.conv.weight"),
        ("rpn.head.cls_logits.weight", "rpn_head.rpn_cls.weight"),
        ("rpn.anchor_generator.cell_anchors.3", None),
        ("roi_heads.box.feature_extractor.fc7.bias", "roi_head.bbox_head.shared_fcs.1.bias"),
        ("roi_heads.box.predictor.scale_cls", "roi_head.bbox_head.fc_cls.scale"),
        ("roi_heads.mask.feature_extractor.mask_fcn4.weight", "roi_head.mask_head.convs.3.conv.weight"),
        ("module.roi_heads.mask.predictor.MLP_mask.weight", "roi_head.mask_head.mlp_fusion.weight"),
        ("roi_heads.bbox2mask.2.bias", "roi_head.mask_head.weight_transfer.2.bias"),
    ],
)
def test_names(source: str, target: str | None) -> None:
    assert rename_key(source) == target


def test_rows_of_the_background() -> None:
    classes = 3
    source = {
        "roi_heads.box.predictor.cls_score.weight": torch.arange(classes + 1.0)[:, None],
        "roi_heads.box.predictor.cls_score.bias": torch.arange(classes + 1.0),
        "roi_heads.box.predictor.bbox_pred.bias": torch.arange(4 * (classes + 1.0)),
        "roi_heads.mask.predictor.mask_fcn_logits.bias": torch.arange(classes + 1.0),
    }
    ours = convert_state_dict(source)
    assert ours["roi_head.bbox_head.fc_cls.weight"][:, 0].tolist() == [1, 2, 3, 0]
    assert ours["roi_head.bbox_head.fc_cls.bias"].tolist() == [1, 2, 3, 0]
    assert ours["roi_head.bbox_head.fc_reg.bias"].tolist() == [float(i) for i in range(4, 16)]
    assert ours["roi_head.mask_head.conv_logits.bias"].tolist() == [1, 2, 3]


def test_moving_the_background_is_reversible() -> None:
    rows = torch.randn(5, 2)
    assert torch.equal(background_first(background_last(rows)), rows)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UserError, match="roi_heads.keypoint.fc"):
        convert_state_dict({"roi_heads.keypoint.fc": torch.zeros(1)})


def test_trimming_a_coco_checkpoint() -> None:
    model = {
        "module.roi_heads.box.predictor.cls_score.weight": 0,
        "module.roi_heads.box.predictor.bbox_pred.bias": 0,
        "module.roi_heads.mask.predictor.mask_fcn_logits.weight": 0,
        "module.rpn.head.bbox_pred.bias": 1,
        "module.roi_heads.mask.predictor.conv5_mask.weight": 2,
    }
    trimmed = trim_class_layers({"model": model, "optimizer": 3, "scheduler": 4, "iteration": 5})
    assert sorted(trimmed) == ["model"] and sorted(trimmed["model"].values()) == [1, 2]

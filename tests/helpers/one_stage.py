"""Tiny versions of mmdet's one-stage and DETR-like detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltpipe.config.experiment import Experiment
from tests.helpers.tiny_project import experiment

PIPELINES = """
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask={masks}, poly2mask=False),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
"""
RESNET = "backbone=dict(depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None, {norm})"
LEARNS = 'norm_cfg=dict(type="BN", requires_grad=True)'
DETECTORS = {
    "retinanet": f"""
_base_ = ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"]
model = dict(
    {RESNET.format(norm=LEARNS)},
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
""",
    "rtmdet_ins": """
_base_ = ["mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py"]
norm = dict(type="BN")
model = dict(
    data_preprocessor=dict(pad_mask=True, pad_size_divisor=32),
    backbone=dict(deepen_factor=0.167, widen_factor=0.125, init_cfg=None, norm_cfg=norm),
    neck=dict(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1, norm_cfg=norm),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, norm_cfg=norm),
)
""",
    "dino": f"""
_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]
attention = dict(embed_dims=32, num_levels=4)
layer = dict(embed_dims=32, feedforward_channels=64)
model = dict(
    num_queries=20,
    data_preprocessor=dict(pad_size_divisor=32),
    {RESNET.format(norm=LEARNS)},
    neck=dict(in_channels=[16, 32, 64], out_channels=32, norm_cfg=dict(num_groups=8)),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=layer)),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=dict(embed_dims=32), cross_attn_cfg=attention, ffn_cfg=layer),
    ),
    positional_encoding=dict(num_feats=16),
    bbox_head=dict(embed_dims=32),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=10)),
)
""",
}
WITH_MASKS = ("rtmdet_ins",)


def one_stage(project: Path, name: str, **blocks: Any) -> Experiment:
    """Return the tiny experiment with a one-stage detector, all classes at once."""
    file = project / f"{name}.py"
    masks = name in WITH_MASKS
    file.write_text(DETECTORS[name] + PIPELINES.format(masks=masks), encoding="utf-8")
    schedule = {"iterations": 4, "batch_size": 2, "lr": 0.001, "optimizer": "adamw", "clip_norm": 1}
    changes: dict[str, Any] = {
        "detector": {"config": str(file)},
        "model": {"classifier": None},
        "base": {"schedule": schedule},
        "evaluate": {"iou_types": ["bbox", "segm"] if masks else ["bbox"], "score_threshold": 0.0},
        **dict.fromkeys(("split", "lst", "calibrate", "features")),
    }
    for key, value in blocks.items():
        changes[key] = {**(changes.get(key) or {}), **value} if isinstance(value, dict) else value
    return experiment(project, **changes)

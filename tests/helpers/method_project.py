"""A project small enough to train in seconds: 64-pixel toy images and a detector with eight base channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.data.toy import write_toy_data

REPOSITORY = Path(__file__).resolve().parents[2]
TOY = {"num_classes": 9, "train_images": 24, "val_images": 6, "image_size": 64, "fewest_images": 1}
DETECTOR = """
_base_ = {base!r}
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, reg_class_agnostic={agnostic}),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, num_convs=1, conv_out_channels=16, class_agnostic={agnostic}),
    ),
    train_cfg=dict(rpn=dict(sampler=dict(num=16)), rcnn=dict(sampler=dict(num=24))),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
"""
COMMON: dict[str, Any] = {
    "dataset": {
        "name": "tiny",
        "train": {"annotations": "data/tiny/train.json", "images": "data/tiny/train"},
        "val": {"annotations": "data/tiny/val.json", "images": "data/tiny/val"},
        "generate": TOY,
    },
    "detector": {"config": "class_wise.py"},
    "base": {"schedule": {"iterations": 18, "batch_size": 4, "lr": 0.01, "warmup_iterations": 0}},
    "features": {"steps": 4, "classes_per_step": 4, "rois": 16},
    "evaluate": {"max_detections": 20, "score_threshold": 0.0},
}


def write_project(folder: Path) -> None:
    """Draw the data and write two detector files; experiments are loaded with ``folder`` as working directory."""
    write_toy_data(folder / "data" / "tiny", **TOY)
    base = str(REPOSITORY / "configs" / "detectors" / "mask_rcnn_toy.py")
    for name, agnostic in (("class_wise.py", False), ("class_agnostic.py", True)):
        (folder / name).write_text(DETECTOR.format(base=base, agnostic=agnostic))


def tiny_experiment(folder: Path, name: str, **blocks: Any) -> Experiment:
    """Return the tiny experiment with blocks replaced, written to ``<name>.yaml``."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **blocks}))
    return load_experiment(file)

"""Content of the small project of the tests in this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ltpipe.config.experiment import Experiment

DETECTOR = """
model = dict(type="MaskRCNN", roi_head=dict(bbox_head=dict(), mask_head=dict()))
train_pipeline = [dict(type="Resize", scale=(64, 64)), dict(type="RandomFlip", prob=0.5)]
test_pipeline = []
"""
EXPERIMENT = """\
dataset:
  name: small
  train: {annotations: data/train.json, images: data/train}
  val: {annotations: data/val.json, images: data/val}
detector: {config: detector.py}
model:
  classifier: {type: cosine}
split: {base_classes: 2, step: 3}
base:
  sampler: {type: repeat_factor, threshold: 0.01}
  schedule: {epochs: 2}
lst:
  schedule: {iterations: 10}
calibrate:
  head: {type: simcal, schedule: {iterations: 20}}
report:
  expected: [{checkpoint: phase1, iou_type: segm, metric: AP, value: 20, tolerance: 1, source: a paper}]
"""
Load = Callable[..., Experiment]


def write_annotations(path: Path, names: list[str]) -> None:
    """Write an annotation file whose categories come after a list that also mentions the word."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 10 * (i + 1), "name": name, "synonyms": ["[]"]} for i, name in enumerate(names)]
    content = {"info": {"categories": "none"}, "annotations": [], "categories": categories, "images": []}
    path.write_text(json.dumps(content), encoding="utf-8")

"""Detector files are resolved with all their bases, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltpipe.config.checks import check_settings
from ltpipe.config.detector import resolve_detector
from ltpipe.errors import UserError
from tests.helpers.small_project import DETECTOR, Load

MASK_RCNN = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"


def test_a_detector_of_mmdet() -> None:
    found = resolve_detector(MASK_RCNN)
    assert (found.roi_head_type, found.stages, found.has_masks, found.backbone) == ("StandardRoIHead", 1, True, "R-50")
    assert found.random_geometry == [] and found.train_pipeline[-1]["type"] == "PackDetInputs"
    assert isinstance(found.train_pipeline[2]["scale"], tuple), "transforms of mmcv tell tuples from lists"


def test_a_base_of_mmdet(project: Path) -> None:
    Path("ours.py").write_text(
        f"_base_ = {MASK_RCNN!r}\nmodel = dict(backbone=dict(depth=101), roi_head=dict(mask_head=None))\n"
        "train_pipeline = [dict(type='mmdet.RandomChoice', transforms=[[dict(type='CopyPaste')]])]\n"
    )
    found = resolve_detector("ours.py")
    assert (found.backbone, found.has_masks) == ("R-101", False)
    assert found.random_geometry == ["RandomChoice", "CopyPaste"]


def test_configs_of_classes(project: Path) -> None:
    Path("parent.py").write_text("from mmdet.models import ResNet\nbackbone = dict(type=ResNet, depth=18)\n")
    Path("lazy.py").write_text(
        "from mmengine.config import read_base\n\nwith read_base():\n    from .parent import *\n"
        "model = dict(backbone=backbone)\ntrain_pipeline = []\ntest_pipeline = []\n"
    )
    assert resolve_detector("lazy.py").backbone == "R-18"


def test_files_that_have_not_changed_are_read_once(project: Path) -> None:
    Path("parent.py").write_text(DETECTOR + "model['backbone'] = dict(type='ResNet', depth=50)\n")
    Path("ours.py").write_text("_base_ = 'parent.py'\n")
    first = resolve_detector("ours.py")
    assert resolve_detector("ours.py") is first and first.backbone == "R-50"
    Path("parent.py").write_text(DETECTOR + "model['backbone'] = dict(type='ResNet', depth=18)\n")
    assert resolve_detector("ours.py").backbone == "R-18"
    Path("ours.py").unlink()
    with pytest.raises(UserError, match="does not exist"):
        resolve_detector("ours.py")


def test_nothing_heavy_is_imported() -> None:
    code = f"import sys; from ltpipe.config.detector import resolve_detector as r; r({MASK_RCNN!r})"
    code += "; print([m for m in ('torch', 'mmdet', 'mmcv') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DETECTOR.replace("train_pipeline", "train_pipline"), "did you mean 'train_pipeline'"),
        (DETECTOR + "custom_hook = []\n", "did you mean 'custom_hooks'"),
        ("1 / 0", "ZeroDivisionError"),
        ("_base_ = 'nowhere.py'", "nowhere.py"),
        ("_base_ = 'mmdet::mask_rcnn/nothing.py'", "nothing.py"),
    ],
)
def test_what_cannot_be_read(project: Path, text: str, words: str) -> None:
    Path("wrong.py").write_text(text)
    with pytest.raises(UserError, match=words):
        resolve_detector("wrong.py")


@pytest.mark.parametrize("name", ["retinanet/retinanet_r50_fpn_1x_coco.py", "dino/dino-4scale_r50_8xb2-12e_coco.py"])
def test_detectors_without_a_roi_head_have_no_phases(load: Load, name: str) -> None:
    exp = load("detector: {config: detector.py}", f"detector: {{config: 'mmdet::{name}'}}")
    with pytest.raises(UserError, match="lst\n(.|\n)*leave out lst"):
        check_settings(exp)

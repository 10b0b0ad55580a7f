"""``validate`` builds the detector without weights: nothing that passes ends in a traceback of mmdet in ``base``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import list_experiments, load_experiment
from ltpipe.engine.inspection import inspect_detector
from ltpipe.errors import UserError
from ltpipe.interop.finished_checkpoints import check_checkpoints
from tests.helpers.tiny_project import experiment


def edited(project: Path, *edits: str, **blocks: Any) -> Experiment:
    """The tiny experiment with a detector file that extends the toy detector."""
    file = project / "edited.py"
    text = (project / "detector.py").read_text()
    file.write_text("\n".join([text, *edits, ""]))
    return experiment(project, detector={"config": str(file), **blocks.pop("detector", {})}, **blocks)


def test_what_is_found(project: Path) -> None:
    found = inspect_detector(experiment(project))
    assert found.facts[0].startswith("detector: MaskRCNN, 1 stage, boxes one for all classes")
    assert "starts from: random weights" in found.facts
    assert all(p.device.type == "meta" for p in found.detector.parameters())


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("model['backbone']['dept'] = 18", ["edited.py: model", "dept"]),
        ("model['backbone']['type'] = 'ResNett'", ["unknown component", "did you mean 'ResNet'"]),
        ("model['roi_head']['bbox_head']['type'] = 'Shared2FCBoxHead'", ["did you mean 'Shared2FCBBoxHead'"]),
        ("model['roi_head']['bbox_head']['type'] = 'Shared4Conv1FCBBoxHead'", ["cannot be copied"]),
        ("model['roi_head']['bbox_head']['fc_out_channel'] = 3", ["fc_out_channel"]),
        ("train_pipeline = [dict(type='RandomFlip', probability=1)]", ["train_pipeline[", "probability"]),
        (
            "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Rezise')]",
            ["test_pipeline[1]", "did you mean 'Resize'"],
        ),
        ("model['backbone']['frozen_stages'] = 2", ["frozen", "init_cfg"]),
        ("model['backbone']['norm_cfg'] = dict(type='BN', requires_grad=False)", ["frozen", "random"]),
        ("train_pipeline = [dict(type='Albu', transforms=[])]", ["package is missing", "albumentations"]),
    ],
)
def test_what_is_refused(project: Path, edit: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        inspect_detector(edited(project, edit))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "Traceback" not in str(error.value)


def test_frozen_layers_with_weights_to_start_from(project: Path) -> None:
    frozen = "model['backbone'].update(frozen_stages=1, init_cfg=dict(type='Pretrained', checkpoint='resnet.pth'))"
    assert "starts from: resnet.pth" in inspect_detector(edited(project, frozen)).facts


def test_checkpoints(project: Path, tmp_path: Path) -> None:
    found = inspect_detector(experiment(project))
    own, file = found.detector.state_dict(), tmp_path / "start.pth"
    meta = {"category_ids": [1, 2, 3, 4, 5], "dataset_meta": {"classes": tuple("abcde")}}
    for block, other in (("detector", "load_from"), ("base", "checkpoint")):
        exp = experiment(project, **{block: {other: str(file)}})
        file.write_bytes(b"no checkpoint")
        with pytest.raises(UserError, match="start.pth"):
            check_checkpoints(exp, found.detector, found.num_classes)
        torch.save({"state_dict": {key: torch.zeros(3, 2, 1) for key in own}, "meta": meta}, file)
        with pytest.raises(UserError, match="fits? the detector"):
            check_checkpoints(exp, found.detector, found.num_classes)
        torch.save({"state_dict": {key: torch.zeros(value.shape) for key, value in own.items()}, "meta": meta}, file)
        check_checkpoints(exp, found.detector, found.num_classes)
        assert f"starts from: {file}" in inspect_detector(exp).facts


def test_a_detector_of_mmdet(project: Path) -> None:
    exp = experiment(project, detector={"config": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"})
    facts = inspect_detector(exp).facts
    assert "boxes per class, masks per class" in facts[0]
    assert "torchvision://resnet50" in facts[2]


@pytest.mark.parametrize("name", [name for name in list_experiments() if name.startswith(("lvis_v05", "toy"))])
def test_shipped_detectors_can_be_built(name: str) -> None:
    assert inspect_detector(load_experiment(name)).facts

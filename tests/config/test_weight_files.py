"""Weights that detector files name: what they stand for, what they need; every shipped detector can start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ltpipe.config.checks import check_experiment, check_settings
from ltpipe.config.detector import resolve_detector
from ltpipe.config.weight_files import address, named_weights
from ltpipe.errors import UserError
from tests.helpers.small_project import DETECTOR, Load

ROOT = Path(__file__).resolve().parents[2]
DETECTORS = sorted((ROOT / "configs" / "detectors").glob("*.py"))


@pytest.mark.parametrize("file", DETECTORS, ids=lambda file: file.stem)
def test_every_shipped_detector_can_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the documented environment, which has no torchvision."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    names = named_weights(resolve_detector(file).model)
    # Those without take a checkpoint by detector.load_from, or are drawn at random.
    assert len(names) == (file.stem not in ("mask_rcnn_r50_fpn", "mask_rcnn_camvid") and not file.stem.endswith("_toy"))
    for name in names:
        found = address(name, file)
        assert str(found).startswith("https://") or (name.startswith("pip://") and Path(str(found)).is_file())


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        ("model = dict(backbone=dict(depth=101))", ["torchvision://resnet50", "neck.pth"]),
        ("model = dict(backbone=dict(init_cfg=None))", ["neck.pth"]),
        ("model = dict(backbone=dict(_delete_=True, type='ResNet'))", ["neck.pth"]),
        ("model = dict(backbone=dict(pretrained='b.pth'))", ["torchvision://resnet50", "b.pth", "neck.pth"]),
        (
            "W = 'a' + '.pth'\n"
            "model = {'backbone': {'init_cfg': [dict(type='Normal'), dict(type='Pretrained', checkpoint=W)]}}",
            ["a.pth", "neck.pth"],
        ),
        (
            "model = dict(roi_head=dict(bbox_head=[dict(init_cfg=dict(type='Pretrained', checkpoint='h.pth'))]))",
            ["torchvision://resnet50", "neck.pth", "h.pth"],
        ),
    ],
)
def test_a_detector_names_its_weights(tmp_path: Path, child: str, expected: list[str]) -> None:
    (tmp_path / "parent.py").write_text(
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),\n"
        "             neck=dict(init_cfg=dict(type='Pretrained', checkpoint='neck.pth')))\n"
        "train_pipeline = test_pipeline = []\n"
    )
    (tmp_path / "child.py").write_text(f"_base_ = 'parent.py'\n{child}\n")
    assert named_weights(resolve_detector(tmp_path / "child.py").model) == expected


def test_names_stand_for_files() -> None:
    assert str(address("torchvision://resnet50", "")).startswith("https://download.pytorch.org/models/resnet50-")
    assert str(address("open-mmlab://resnext101_64x4d", "")).endswith("resnext101_64x4d-ee2c6f71.pth")
    assert address("open-mmlab://resnet50_caffe", "") == address("openmmlab://detectron/resnet50_caffe", "")
    assert address("a/b.pth", "") == Path("a/b.pth") and address("http://x.y/z.pth", "") == "http://x.y/z.pth"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open-mmlab://resnet51", ["start weights of open-mmlab", "resnet51", "did you mean"]),
        ("timm://resnet50", ["cannot get", "timm://resnet50", "torchvision://", "a file"]),
        ("s3://bucket/a.pth", ["cannot get", "s3://bucket/a.pth"]),
        ("torchvision://resnet50.imagenet1k_v2", ["need torchvision", "not installed", "resnet50", "constraints.txt"]),
    ],
)
def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # not installed
    with pytest.raises(UserError) as caught:
        address(name, "here")
    assert all(word in str(caught.value) for word in [*words, "here"])


def test_newer_names_are_torchvisions_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise AssertionError('is not imported to find out')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert address("torchvision://resnet50.imagenet1k_v2", "here") is None


def test_start_weights_of_an_experiment(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    text = DETECTOR + "model['backbone'] = dict(init_cfg=dict(type='Pretrained', checkpoint={!r}))\n"
    Path("detector.py").write_text(text.format("start.pth"))
    with pytest.raises(UserError, match="missing start weights") as caught:
        check_experiment(load(), ["small"])
    assert "start.pth" in str(caught.value) and "detector.py" in str(caught.value)
    Path("start.pth").touch()
    assert check_experiment(load(), ["small"]) == []
    Path("detector.py").write_text(text.format("torchvision://resnet50"))
    (remark,) = check_experiment(load(), ["small"])
    file = tmp_path / "torch/hub/checkpoints/resnet50-0676ba61.pth"
    assert all(word in remark for word in ("torchvision://resnet50", "https://", "no network", str(file)))
    file.parent.mkdir(parents=True)
    file.touch()
    assert check_experiment(load(), ["small"]) == []
    Path("detector.py").write_text(text.format("timm://resnet50"))
    for check in (check_settings, check_experiment):  # Snakemake asks the first, before any job
        with pytest.raises(UserError, match="cannot get"):
            check(load(), ["small"])

"""The experiment files of the repository: valid without data, complete, and buildable with their own class counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope

import ltpipe.engine
import ltpipe.methods  # noqa: F401  registers everything
from ltpipe.engine.config import ClassCounts, assemble_model
from ltpipe.registry import MODELS
from ltpipe.spec.checks import check_experiment
from ltpipe.spec.load import list_experiments, load_experiment

ROOT = Path(__file__).resolve().parents[2]
NAMES = list_experiments(ROOT)
METRICS = {"AP", "AP50", "AP75", "APr", "APc", "APf"}
IMAGES = {"lvis_v1": (100170, 99388), "lvis_v0.5": (57263, 56740)}


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The repository's folder, with data folders that do not exist."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LVIS", "no/such/folder")
    yield


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("lvis", "toy"))])
def test_valid_with_the_class_list_only(name: str) -> None:
    exp = load_experiment(name)
    notes = check_experiment(exp, NAMES)
    assert notes or exp.dataset.generate is not None, "says that there were no data; toy data may have been drawn"
    assert exp.file is not None and len(exp.file.read_text().splitlines()) <= 40
    assert exp.description
    for expected in exp.report.expected:
        assert expected.metric in METRICS and 0 <= expected.value < 50
        assert any(word in expected.source for word in ("README", "issue", "unverified"))


def test_every_published_row_is_there() -> None:
    rows = {
        (exp.name, row.checkpoint, row.metric): row.value
        for exp in map(load_experiment, NAMES)
        for row in exp.report.expected
        if row.iou_type == "segm"
    }
    assert rows["lvis_v1_fasa", "base", "APr"] == 10.5
    assert rows["lvis_v1_fasa_iof", "base", "AP"] == 26.3
    assert rows["lvis_v1_eqlv2_1x", "base", "APr"] == 14.9
    assert rows["lvis_v1_decoupled", "bags", "AP"] == rows["lvis_v1_bags_1x", "base", "AP"] == 23.1
    assert rows["lvis_v1_crt_1x", "base", "APr"] == 11.9 and rows["lvis_v1_lws_1x", "base", "APf"] == 27.4
    assert rows["lvis_v05_bags_mask", "base", "AP"] == 26.25
    assert rows["lvis_v1_seesaw_rfs_normed_mask_r101", "base", "AP"] == 28.2


def lvis_counts(name: str) -> ClassCounts:
    table = json.loads((ROOT / "configs" / "classes" / f"{name}.json").read_text())
    table.sort(key=lambda row: -row["instance_count"])
    images, instances = ([row[key] for row in table] for key in ("image_count", "instance_count"))
    return ClassCounts(images, instances, *IMAGES[name])


@pytest.mark.parametrize(
    "name", ["lvis_v1_fasa_iof_rsb", "lvis_v1_crat_eqlv2_1x", "lvis_v1_seesaw_r101", "lvis_v1_iif_x101", "lvis_v05_rfs"]
)
def test_detectors_build(name: str) -> None:
    exp = load_experiment(name)
    counts = lvis_counts(exp.dataset.name)
    _, model = assemble_model(exp, counts)
    init_default_scope("mmdet")
    head = MODELS.build(model.roi_head)
    channels = {"seesaw": 2}.get(exp.model.loss.type, 1)
    assert head.bbox_head.fc_cls.out_features == len(counts.images) + channels
    assert len(head.parts) == len(exp.model.parts)
    with torch.device("meta"):
        backbone = MODELS.build({**model.backbone, "init_cfg": None})
        shapes = [feature.shape[1] for feature in backbone(torch.empty(1, 3, 64, 64))]
    assert shapes == list(model.neck.in_channels)

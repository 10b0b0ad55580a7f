"""The experiment files of the repository: valid without data, complete, and buildable with their own class counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope

import ltpipe.engine
import ltpipe.methods  # noqa: F401  registers everything
from ltpipe.config.checks import check_experiment
from ltpipe.config.loading import list_experiments, load_experiment
from ltpipe.engine.model_config import ClassCounts, assemble_model
from ltpipe.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
NAMES = list_experiments()
METRICS = {"AP", "AP50", "AP75", "APr", "APc", "APf", "bAP"}
SOURCES = ("README", "paper", "plot data", "issue", "unverified")
IMAGES = {"lvis_v1": (100170, 99388), "lvis_v0.5": (57263, 56740)}


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The repository's folder, with data folders that do not exist."""
    monkeypatch.chdir(ROOT)
    for variable in ("LVIS", "COCO"):
        monkeypatch.setenv(variable, "no/such/folder")
    yield


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("lvis", "coco", "toy"))])
def test_valid_with_the_class_list_only(name: str) -> None:
    exp = load_experiment(name)
    notes = check_experiment(exp, NAMES)
    assert notes or exp.dataset.generate is not None, "says that there were no data; toy data may have been drawn"
    assert exp.file is not None
    settings, _, _ = exp.file.read_text().partition("\nreport:")  # tables of published numbers may be longer
    assert len(settings.splitlines()) <= 40
    edges = (0, *exp.evaluate.bins)
    bins = {f"bin/{low}-{high}" for low, high in pairwise(edges)} | {f"bin/{edges[-1]}+"}
    assert exp.description
    for expected in exp.report.expected:
        assert expected.metric in METRICS | bins and 0 <= expected.value < 50
        assert any(word in expected.source for word in SOURCES), expected.source
    targets = [(row.checkpoint, row.iou_type, row.metric) for row in exp.report.expected]
    assert len(targets) == len(set(targets)), "one target for each metric"
    assert not targets or "published" in exp.description, "says by whom"
    # Of classes with few objects the published numbers themselves scatter by three points.
    rarest = {"APr", f"bin/0-{edges[1]}"}
    assert all(row.tolerance >= 3 for row in exp.report.expected if row.metric in rarest)


def test_every_published_row_is_there() -> None:
    rows = {
        (exp.name, row.checkpoint, row.metric): row.value
        for exp in map(load_experiment, NAMES)
        for row in exp.report.expected
        if row.iou_type == "segm"
    }
    assert rows["lvis_v1_fasa", "base", "APr"] == 10.5
    assert rows["lvis_v1_fasa_iof", "base", "AP"] == 26.3
    assert rows["lvis_v1_fasa_iof_rsb", "base", "APc"] == 26.8
    assert rows["lvis_v1_ecm", "base", "AP"] == 27.5 and rows["lvis_v1_ecm_cascade_r101", "base", "AP"] == 30.6
    assert rows["lvis_v1_gol", "base", "APr"] == 21.4 and rows["lvis_v05_gol", "base", "AP"] == 29.5
    assert rows["lvis_v1_loce", "base", "AP"] == 26.6
    assert rows["lvis_v1_rfs_r101", "base", "APr"] == 16.6 and rows["lvis_v1_rfs_1x", "base", "AP"] == 22.2
    assert rows["lvis_v1_eqlv2_1x", "base", "APr"] == 14.9
    assert rows["lvis_v1_decoupled", "bags", "AP"] == rows["lvis_v1_bags_1x", "base", "AP"] == 23.1
    assert rows["lvis_v1_crt_1x", "base", "APr"] == 11.9 and rows["lvis_v1_lws_1x", "base", "APf"] == 27.4
    assert rows["lvis_v05_bags_mask", "base", "AP"] == 26.25
    assert rows["lvis_v1_seesaw_rfs_normed_mask_r101", "base", "AP"] == 28.2
    assert rows["lvis_v1_seesaw_rfs_normed_mask_cascade_r101", "base", "AP"] == 30.1
    assert rows["lvis_v05_htc_x101_dcn_ms", "simcal", "APr"] == 24.7
    assert rows["lvis_v05_htc_x101", "bags", "AP"] == 31.2
    assert rows["lvis_v05_simcal", "dual", "AP"] == 23.4 and rows["lvis_v05_simcal_ag", "cal", "bin/0-10"] == 13.2
    assert rows["lvis_v05_simcal_ag_schedules", "lr_0.01", "bAP"] == 20.2
    assert rows["coco_lt_simcal_ag", "dual", "bin/0-20"] == 15.0
    variants = ("raw", "smooth", "rel", "normit", "gombit", "base2", "base10")
    named = {f"{data}_iif_{v}{count}_1x" for data in ("lvis_v1", "coco") for v in variants for count in ("", "_obj")}
    assert named - set(NAMES) == {"lvis_v1_iif_raw_1x", "coco_iif_raw_1x"}, "raw on image counts is the reference"


def test_settings_that_were_wrong() -> None:
    """As in the configs of the repositories."""
    for name, lr, threshold in (
        ("lvis_v05_htc_x101", 0.01, 0.001),
        ("lvis_v05_htc_x101_dcn_ms", 0.02, 0.0),
        ("lvis_v05_htc_x101_dcn_ms_bags", 0.01, 0.001),
        ("lvis_v05_cascade_x101", 0.01, 0.001),
    ):
        exp = load_experiment(name)
        schedule = exp.base.schedule
        assert (schedule.lr, schedule.clip_norm, schedule.warmup_factor) == (lr, 35, 0.33333), name
        assert exp.evaluate.score_threshold == threshold and (exp.detector.load_from is None) == (lr == 0.02)
        assert (schedule.epochs, schedule.drops[0]) == ((12, 0.66667) if "cascade" in name else (20, 0.8))
    lst = load_experiment("lvis_v05_lst")
    assert (lst.base.schedule.iterations, lst.evaluate.score_threshold) == (50000, 0.0)
    assert lst.model.mask.options["fusion"] == "full" and not lst.report.expected
    assert load_experiment("lvis_v05_bags_rfs").base.sampler.options["drop_fraction"] == 0
    assert load_experiment("lvis_v05_bags_mask").evaluate.score_threshold == 0.001
    assert load_experiment("lvis_v05_gol").model.loss.options["threshold"] == 0.00177


def test_boxes_and_masks_of_simcals_detectors() -> None:
    for name, outputs in (("lvis_v05_simcal", 1230), ("lvis_v05_simcal_ag", 1)):
        _, model = assemble_model(load_experiment(name), lvis_counts("lvis_v0.5"))
        init_default_scope("mmdet")
        with torch.device("meta"):
            head = MODELS.build({**model.roi_head, "train_cfg": None, "test_cfg": None})
        assert head.bbox_head.fc_reg.out_features == 4 * outputs
        assert head.mask_head.conv_logits.out_channels == outputs
        assert model.train_cfg.rpn_proposal.max_per_img == 2000


def test_constant_start_of_plain_iif() -> None:
    _, model = assemble_model(load_experiment("lvis_v1_iif_1x"), lvis_counts("lvis_v1"))
    init_default_scope("mmdet")
    head = MODELS.build({**model.roi_head.bbox_head, "in_channels": 2, "roi_feat_size": 3, "fc_out_channels": 64})
    head.init_weights()
    assert (head.fc_cls.weight == 0.001).all() and not head.fc_cls.bias.any()
    bound = 64**-0.5
    assert 0.9 * bound < head.fc_reg.weight.abs().max() <= bound, "torch's own start, not N(0, 0.001)"


def lvis_counts(name: str) -> ClassCounts:
    table = json.loads((ROOT / "configs" / "classes" / f"{name}.json").read_text())
    table.sort(key=lambda row: -row["instance_count"])
    images, instances = ([row[key] for row in table] for key in ("image_count", "instance_count"))
    return ClassCounts(images, instances, *IMAGES[name])


@pytest.mark.parametrize(
    "name",
    [
        "lvis_v1_fasa_iof_rsb",
        "lvis_v1_crat_eqlv2_1x",
        "lvis_v1_seesaw_r101",
        "lvis_v1_iif_x101",
        "lvis_v05_rfs",
        "lvis_v1_ecm_1x",
        "lvis_v1_loce",
        "lvis_v05_gol",
    ],
)
def test_detectors_build(name: str) -> None:
    exp = load_experiment(name)
    counts = lvis_counts(exp.dataset.name)
    _, model = assemble_model(exp, counts)
    init_default_scope("mmdet")
    head = MODELS.build(model.roi_head)
    channels = {"seesaw": 2, "gol": 0}.get(exp.model.loss.type, 1)
    assert head.bbox_head.fc_cls.out_features == len(counts.images) + channels
    assert len(head.parts) == len(exp.model.parts)
    with torch.device("meta"):
        backbone = MODELS.build({**model.backbone, "init_cfg": None})
        shapes = [feature.shape[1] for feature in backbone(torch.empty(1, 3, 64, 64))]
    assert shapes == list(model.neck.in_channels)


@pytest.mark.parametrize(
    "name",
    [
        "lvis_v1_fasa_iif_cascade_r101",
        "lvis_v1_seesaw_rfs_normed_mask_cascade_r101",
        "lvis_v05_cascade_x101",
        "lvis_v05_htc_x101_dcn_ms",
    ],
)
def test_cascades_build(name: str) -> None:
    exp = load_experiment(name)
    counts = lvis_counts(exp.dataset.name)
    _, model = assemble_model(exp, counts)
    init_default_scope("mmdet")
    with torch.device("meta"):
        head = MODELS.build(model.roi_head)
        backbone = MODELS.build({**model.backbone, "init_cfg": None})
    classes, wise = len(counts.images), name == "lvis_v1_fasa_iif_cascade_r101"
    outputs = classes + (2 if exp.model.loss.type == "seesaw" else 1)
    assert [stage.fc_cls.out_features for stage in head.bbox_heads] == [outputs] * 3
    assert [stage.fc_reg.out_features for stage in head.bbox_heads] == [4 * classes if wise else 4] * 3
    assert [stage.bbox_coder.stds[0] for stage in head.bbox_heads] == [0.1, 0.05, 0.033]
    assert [len(part) for part in head.parts] == [3] * len(exp.model.parts)
    if head.with_mask:
        assert [stage.conv_logits.out_channels for stage in head.mask_head] == [classes] * 3
    else:
        assert exp.evaluate.iou_types == ("bbox",)
    assert len(backbone.layer3) == 23 and sum(p.numel() for p in backbone.parameters()) > 40e6
    assert [cfg.assigner.pos_iou_thr for cfg in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]

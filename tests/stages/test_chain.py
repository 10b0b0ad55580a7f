"""A whole chain by stage functions: artefacts, records, and what must be equal along the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
from mmengine.config import Config

from ltpipe.data.calibration_rows import FeaturePlan
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.calibrator_training import train_head
from ltpipe.engine.dataset_configs import annotated_config
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.engine.inference import build_dataset, load_model
from ltpipe.engine.model_config import read_detector
from ltpipe.errors import UserError
from ltpipe.methods.lst.expansion import expand_checkpoint
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.digests import stage_digest
from ltpipe.registry import MODELS
from ltpipe.run.files import sha256_file
from ltpipe.run.records import recorded_outputs
from ltpipe.stages.calibrate import open_rows
from ltpipe.stages.cross_check import cross_check
from tests.helpers.configs import read_config
from tests.helpers.tiny_project import assert_same_state, experiment, run_stages, state_of

if TYPE_CHECKING:
    from conftest import Chain


def test_every_stage_leaves_its_outputs_and_a_true_record(chain: Chain) -> None:
    paths = chain.paths
    stages = [
        ("index", None),
        ("split", None),
        ("split", 1),
        ("split", 2),
        ("base", None),
        ("distill", 1),
        ("distill", 2),
    ]
    for stage, key in [*stages, ("lst", 1), ("lst", 2), ("features", None)]:
        record = json.loads(paths.record(stage, key).read_text())
        folder = paths.folder(stage, key)
        assert record["stage"] == stage and record["outputs"]
        assert record["digest"] == stage_digest(chain.exp, stage, key if stage != "index" else None)
        for name, checksum in record["outputs"].items():
            assert sha256_file(folder / name) == checksum
        for name, checksum in record["inputs"].items():
            assert sha256_file(name) == checksum
        hidden = [file.name for file in folder.rglob("*") if file.name.startswith(".") and file.name != ".lock"]
        assert not paths.work(stage, key).exists() and not hidden


def test_checkpoints_say_what_they_know(chain: Chain) -> None:
    split = Split.load(chain.paths.split)
    for checkpoint, classes in (("base", 5), ("phase1", 7), ("phase2", 9)):
        content = torch.load(chain.paths.model(checkpoint), weights_only=True)
        assert content["meta"]["category_ids"] == split.order[:classes].tolist()
        assert len(content["state_dict"]["roi_head.bbox_head.fc_cls.weight"]) == classes + 1


def test_phases_train_the_heads_and_leave_the_backbone(chain: Chain) -> None:
    base, first, second = (state_of(chain.paths.model(c)) for c in ("base", "phase1", "phase2"))
    backbone = [key for key in base if key.startswith("backbone.")]
    assert backbone
    for key in backbone:
        assert torch.equal(base[key], first[key]) and torch.equal(base[key], second[key]), key
    for part in ("neck.fpn_convs.0.conv.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.shared_fcs.0.weight"):
        assert not torch.equal(base[part], first[part]), part


def test_a_model_grown_but_not_trained_agrees_with_its_teacher(chain: Chain) -> None:
    paths, num_old, num_classes = chain.paths, 5, 7
    grown = expand_checkpoint(state_of(paths.model("base")), num_old, num_classes - num_old, seed=1)
    config = Config.fromfile(str(paths.config("phase1"))).model
    part_config = config.roi_head.parts[0]
    assert part_config.type == "ltpipe.LSTDistillation"
    model = MODELS.build(config)
    assert not [key for key in model.load_state_dict(grown, strict=False).missing_keys if "parts" not in key]
    data = annotated_config(
        chain.exp, paths, read_detector(chain.exp.detector.config), phase=1, num_classes=num_classes
    )
    detector = FrozenDetector(model, build_dataset(data))
    part, seen = model.roi_head.parts[0].train(), 0  # the model itself stays in evaluation mode
    for flip in (False, True):
        for row in detector.dataset.view.new_images.tolist():
            batch = detector.batch(row, flip)
            with torch.no_grad():
                feats = model.extract_feat(batch["inputs"])
                loss = part.image_losses(model.roi_head, feats, batch["data_samples"])["loss_distill"]
            assert loss < 1e-6
            seen += 1
    assert seen >= 4


def test_distillation_refuses_a_teacher_of_another_model(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    run_stages(replace_seed(chain, 7), paths.results, "base")
    with pytest.raises(UserError, match="another model"):
        run_stages(chain.exp, paths.results, ("lst", 1))


def replace_seed(chain: Chain, seed: int):
    """Return the experiment with another seed."""
    return chain.exp.model_copy(update={"seed": seed})


def test_stored_and_live_features_are_the_same_rows(chain: Chain) -> None:
    plan = FeaturePlan.load(chain.paths.plan)
    live_exp = experiment(chain.folder, features={"storage": "none"})
    stored, live = (open_rows(exp, chain.paths, plan) for exp in (chain.exp, live_exp))
    assert len(stored) == len(live) == 4
    for step in range(4):
        (x, labels), (y, others) = stored.step(step), live.step(step)
        assert (x.dtype, y.dtype) == (torch.float16, torch.float32) and len(x) > 0
        assert torch.equal(labels, others)
        assert torch.allclose(x.float(), y, atol=2e-3 * float(y.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 1e-3)])
def test_calibration_does_not_depend_on_where_features_come_from(
    chain: Chain, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    losses, plans, models = [], [], []
    for storage in ("cached", "none"):
        exp = experiment(chain.folder, features={"storage": storage, "dtype": dtype})
        paths = chain.copy(tmp_path / storage, exp)
        seen: list[float] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "ltpipe.stages.calibrate.print_progress", lambda _, facts, seen=seen: seen.append(facts["loss"])
            )
            patch.setattr("ltpipe.stages.calibrate.train_head", every_step)
            run_stages(exp, paths.results, "features", ("calibrate", "simcal"))
        assert paths.features.is_file() == (storage == "cached")
        losses.append(seen)
        plans.append(FeaturePlan.load(paths.plan))
        models.append(paths.model("simcal"))
    for name in FeaturePlan.__dataclass_fields__:
        assert np.array_equal(getattr(plans[0], name), getattr(plans[1], name)), name
    assert len(losses[0]) == len(losses[1]) == 6
    assert np.allclose(losses[0], losses[1], rtol=tolerance, atol=tolerance)
    one, other = map(state_of, models)
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=10 * tolerance) for key in one)


def every_step(*args, **options):
    """Train a head, reporting every step."""
    return train_head(*args, **options, report_every=1)


def test_dual_calibration_in_base_mode_equals_the_uncalibrated_checkpoint(chain: Chain, tmp_path: Path) -> None:
    exp = experiment(chain.folder, calibrate={"simcal": {"mode": "base"}})
    paths = chain.copy(tmp_path, exp)
    run_stages(exp, paths.results, ("calibrate", "simcal"), ("evaluate", "phase2"), ("evaluate", "simcal"))
    plain, calibrated = (Predictions.open(paths.predictions(c)) for c in ("phase2", "simcal"))
    assert len(plain) == len(calibrated) > 0
    for name in ("image_ids", "category_ids", "scores", "boxes"):
        assert np.array_equal(getattr(plain, name), getattr(calibrated, name)), name
    assert paths.metrics("phase2").read_text() == paths.metrics("simcal").read_text()
    frozen = state_of(paths.model("phase2"))
    kept = state_of(paths.model("simcal"))
    assert all(torch.equal(frozen[key], kept[key]) for key in frozen) and len(kept) > len(frozen)


def test_evaluation_and_report(chain: Chain, tmp_path: Path) -> None:
    kinds = ["bbox", "segm", "boundary"]
    exp = experiment(chain.folder, evaluate={"iou_types": kinds})
    paths = chain.copy(tmp_path, exp)
    checkpoints = exp.evaluated_checkpoints()
    assert checkpoints == ["base", "phase1", "phase2", "simcal"]
    run_stages(exp, paths.results, ("calibrate", "simcal"), *(("evaluate", c) for c in checkpoints), "report")
    order, val = Split.load(paths.split).order, AnnotationStore.open(paths.store("val"))
    for checkpoint, classes in zip(checkpoints, (5, 7, 9, 9), strict=True):
        found = Predictions.open(paths.predictions(checkpoint))
        assert set(found.category_ids) <= set(order[:classes])
        assert set(found.image_ids) <= set(val.image_ids)
        table = pd.read_csv(paths.per_class(checkpoint))
        assert set(table["iou_type"]) == set(kinds)
        metrics = json.loads(paths.metrics(checkpoint).read_text())
        assert list(metrics) == kinds and metrics["boundary"]["boundary_ratio"] == 0.02
        lines = cross_check(paths.store("val"), paths.predictions(checkpoint), paths.tensors(checkpoint))
        assert [line.split(":")[0] for line in lines] == kinds
    written = json.loads(paths.record("report").read_text())["outputs"]
    assert {"report.html", "summary.csv"} <= set(written)


def test_detections_per_class(chain: Chain, tmp_path: Path) -> None:
    """AP is as it was; AP_fixed is that of detections without a limit per image, of which a class has only so many."""
    numbers, paths = [], chain.copy(tmp_path)
    for per_class in (None, 4, None):
        exp = experiment(chain.folder, evaluate={"max_detections": 3, "detections_per_class": per_class})
        run_stages(exp, paths.results, ("evaluate", "phase2"))
        numbers.append(json.loads(paths.metrics("phase2").read_text()))
        assert paths.unlimited("phase2").is_file() == (per_class is not None)
        if per_class is not None:
            found, plain = (Predictions.open(one("phase2")) for one in (paths.unlimited, paths.predictions))
            assert len(found) > len(plain) and np.unique(found.category_ids, return_counts=True)[1].max() == 4
            assert found.masks is not None
            assert "predictions_per_class.arrow" in recorded_outputs(paths.record("evaluate", "phase2"))
    before, ours, after = numbers
    assert before == after
    for kind in ("bbox", "segm"):
        assert before[kind]["AP"] == ours[kind]["AP"] and before[kind]["dAP_Cls"] == ours[kind]["dAP_Cls"]
        assert (before[kind]["per_image_limit"], ours[kind]["per_image_limit"]) == (3, None)
        assert (before[kind]["per_class_limit"], ours[kind]["per_class_limit"]) == (10_000, 4)


def test_a_stage_names_the_stage_that_must_run_before(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run_stages(chain.exp, tmp_path, "base")
    assert "ltpipe index --experiment tiny" in str(error.value)
    exp = experiment(chain.folder, dataset={"train": {"annotations": str(tmp_path / "no.json")}})
    with pytest.raises(UserError) as error:
        run_stages(exp, tmp_path, "index")
    assert str(tmp_path / "no.json") in str(error.value) and "dataset.train" in str(error.value)


def test_training_again_gives_the_same_bits(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    run_stages(chain.exp, paths.results, "base")
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_a_calibrated_checkpoint_loads_by_its_config_alone(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    run_stages(chain.exp, paths.results, ("calibrate", "simcal"))
    model = load_model(read_config(paths.config("simcal")).model, paths.model("simcal"))
    assert model.roi_head.calibrator is not None


def test_schedules_of_heads_come_from_the_experiment(chain: Chain) -> None:
    schedule = chain.exp.calibrate["simcal"].schedule
    assert schedule.of_plan(4).iterations == 6
    assert (schedule.lr, schedule.momentum, schedule.weight_decay) == (0.02, 0.0, 0.0)

"""Stages on a cascade: features per stage, one calibrated head per stage, phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config

from ltpipe.config.experiment import Experiment
from ltpipe.data.calibration_rois import box_iou
from ltpipe.data.calibration_rows import FeaturePlan
from ltpipe.engine.dataset_configs import annotated_config
from ltpipe.engine.frozen_detector import FrozenDetector
from ltpipe.engine.inference import build_dataset, load_model
from ltpipe.engine.model_config import read_detector
from ltpipe.errors import UserError
from ltpipe.methods.lst.distillation import box_similarities
from ltpipe.methods.lst.expansion import expand_checkpoint
from ltpipe.methods.lst.teacher import TeacherLogits
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.stages.calibrate import open_rows
from ltpipe.stages.features import frozen_detector
from tests.helpers.configs import assert_described, read_config
from tests.helpers.tiny_project import assert_same_state, copied, experiment, run_stages, state_of

SHORT = {"schedule": {"iterations": 4, "lr": 0.05}}
CALIBRATE = {
    "bags": {"type": "bags", **SHORT},
    "crt": {"type": "crt", **SHORT},
    "iif": {"type": "iif"},
}


def joint(project: Path, **changes: Any) -> Experiment:
    changes = {
        "detector": {"config": str(project / "cascade.py")},
        "model": {"classifier": {"type": "linear"}},
        "split": None,
        "lst": None,
        "calibrate": CALIBRATE,
        "evaluate": {"modes": ["base", "cal", "avg"], "thresholds": [0, 6, 10**6], "score_threshold": 0.0},
        **changes,
    }
    return experiment(project, **changes)


@pytest.fixture(scope="module")
def cascade(project: Path) -> tuple[Experiment, Paths]:
    """A trained cascade, its features, and one set of calibrated heads."""
    exp = joint(project)
    order = ["index", "split", "base", "features", ("calibrate", "simcal")]
    return exp, run_stages(exp, project / "cascade_results", *order)


def plans_of(paths: Paths) -> list[FeaturePlan]:
    return [FeaturePlan.load(paths.of_stage(paths.plan, k)) for k in range(3)]


def test_each_stage_sees_the_boxes_of_the_one_before_refined(cascade: tuple[Experiment, Paths]) -> None:
    exp, paths = cascade
    detector = frozen_detector(exp, paths)
    assert detector.positive_ious == [0.5, 0.6, 0.7]
    plans = plans_of(paths)
    head = detector.model.roi_head
    for sample, (row, flip) in enumerate(plans[0].samples):
        gt_boxes, gt_labels, proposals = detector.proposals(row, flip)
        batch = detector.batch(row, flip)
        with torch.no_grad():
            maps = detector.model.extract_feat(batch["inputs"])
            rois = bbox2roi([torch.from_numpy(proposals[0])])
            for k in (1, 2):
                found = head._bbox_forward(k - 1, maps, rois)
                meta = batch["data_samples"][0].metainfo
                moved = head.bbox_head[k - 1].bbox_coder.decode(
                    rois[:, 1:], found["bbox_pred"], max_shape=meta["img_shape"]
                )
                rois = torch.cat([rois[:, :1], moved], dim=1)
                torch.testing.assert_close(torch.from_numpy(proposals[k]), moved, rtol=1e-4, atol=1e-3)
        for k, plan in enumerate(plans):
            used = np.concatenate([gt_boxes, proposals[k]])
            assert all((used == box).all(axis=1).any() for box in plan.sample_boxes[sample])
            part = slice(plan.box_ptr[sample], plan.box_ptr[sample + 1])
            labels = {int(r): int(label) for r, label in zip(plan.rows, plan.labels, strict=True)}
            best = box_iou(gt_boxes, plan.boxes[part]).max(axis=0)
            for offset, overlap in enumerate(best):
                label = labels[part.start + offset]
                assert (overlap >= detector.positive_ious[k] - 1e-6) == (label < plan.num_classes)


def test_stored_rows_of_a_stage_are_its_live_ones(cascade: tuple[Experiment, Paths], project: Path) -> None:
    exp, paths = cascade
    live_exp = joint(project, features={"storage": "none"})
    firsts = []
    for k, plan in enumerate(plans_of(paths)):
        stored, live = (open_rows(one, paths, plan, k) for one in (exp, live_exp))
        (x, labels), (y, others) = ((rows.float(), kinds) for rows, kinds in (stored.step(0), live.step(0)))
        assert len(x) and torch.equal(labels, others)
        assert torch.allclose(x, y, atol=2e-3 * float(y.abs().max()))
        firsts.append(x)
    assert not any(len(firsts[0]) == len(x) and torch.allclose(firsts[0], x) for x in firsts[1:])


def test_simcal_has_a_head_per_stage_and_every_mode(cascade: tuple[Experiment, Paths]) -> None:
    exp, paths = cascade
    run_stages(exp, paths.results, ("evaluate", "base"), ("evaluate", "simcal"))
    before, after = state_of(paths.model("base")), state_of(paths.model("simcal"))
    assert all(torch.equal(after[key], value) for key, value in before.items())
    added = after.keys() - before.keys()
    assert {key.split(".")[2] for key in added} == {"0", "1", "2"} and len(added) == 3 * 6
    for k in range(3):
        old, new = before[f"roi_head.bbox_head.{k}.fc_cls.weight"], after[f"roi_head.calibrator.{k}.fc_cls.weight"]
        assert old.shape == new.shape and not torch.equal(old, new)
    table = pd.read_csv(paths.sweep("simcal")).fillna({"threshold": -1})
    base = pd.read_json(paths.metrics("base"), typ="series")["bbox"]
    rows = {(m, t): v for m, t, v in table[table.iou_type == "bbox"][["mode", "threshold", "AP"]].to_numpy().tolist()}
    assert rows["base", -1] == rows["dual", 0] == pytest.approx(base["AP"], nan_ok=True)
    assert rows["cal", -1] == pytest.approx(rows["dual", 10**6], nan_ok=True) and ("avg", -1) in rows
    assert rows["dual", 6] == pytest.approx(
        pd.read_json(paths.metrics("simcal"), typ="series")["bbox"]["AP"], nan_ok=True
    )


def test_trained_heads_of_every_stage_are_taken_over(
    cascade: tuple[Experiment, Paths], project: Path, tmp_path: Path
) -> None:
    _, paths = cascade
    target = copied(paths.results, tmp_path / "results")
    kept = tmp_path / "heads.pth"
    kept.write_bytes(paths.model("simcal").read_bytes())
    exp = joint(project, calibrate={"simcal": {"checkpoint": str(kept)}})
    again = run_stages(exp, target, ("calibrate", "simcal"))
    assert_same_state(again.model("simcal"), kept)
    content = torch.load(kept, weights_only=True)
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if ".calibrator.2." not in k}
    torch.save(content, kept)
    with pytest.raises(UserError, match="the file has none"):
        run_stages(exp, target, ("calibrate", "simcal"))


def test_calibrated_logits_are_averaged_over_the_stages(cascade: tuple[Experiment, Paths]) -> None:
    exp, paths = cascade
    assert_described(exp, paths, "base")
    assert_described(exp, paths, "simcal")
    model: Any = load_model(read_config(paths.config("simcal")).model, paths.model("simcal"))
    fusion = model.roi_head.calibrator
    feats = [torch.rand(5, 16, 7, 7, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    own = torch.rand(5, 10).softmax(1)
    with torch.no_grad():
        logits = torch.stack([head(x) for head, x in zip(fusion, feats, strict=True)]).mean(dim=0)
        got = fusion.fuse(own, fusion.calibrated_scores(feats))
    expected = torch.where(torch.cat([fusion.tail, torch.tensor([False])]), logits.softmax(1), own)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", sorted(CALIBRATE))
def test_calibrators_change_the_classifier_of_every_stage(cascade: tuple[Experiment, Paths], name: str) -> None:
    exp, paths = cascade
    run_stages(exp, paths.results, ("calibrate", name))
    load_model(read_config(paths.config(name)).model, paths.model(name))
    assert_described(exp, paths, name)
    before, after = state_of(paths.model("base")), state_of(paths.model(name))
    config = Config.fromfile(str(paths.config(name))).model.roi_head
    classifiers = tuple(f"roi_head.bbox_head.{k}.{layer}" for k in range(3) for layer in ("fc_cls.", "loss_cls."))
    for key, value in before.items():
        if not key.startswith(classifiers):
            assert torch.equal(after[key], value), key
    for k, head in enumerate(config.bbox_head):
        key = f"roi_head.bbox_head.{k}.fc_cls.weight"
        assert torch.equal(after[key], before[key]) == (name == "iif")
        kinds = {"bags": "GroupSoftmaxLoss", "iif": "IIFLoss"}
        assert head.loss_cls.type.endswith(kinds.get(name, "CrossEntropyLoss"))
    if name == "bags":
        assert [head.loss_cls.seed for head in config.bbox_head] == [0, 1, 2]


def test_features_of_another_detector_leave_no_stages_behind(
    cascade: tuple[Experiment, Paths], project: Path, tmp_path: Path
) -> None:
    exp, paths = cascade
    plain = joint(project, detector={"config": str(project / "detector.py")})
    mine = run_stages(plain, copied(paths.results, tmp_path / "results"), "base", "features")
    assert paths.of_stage(paths.features, 2).is_file()
    assert sorted(file.name for file in mine.folder("features").iterdir() if file.suffix in (".npy", ".npz")) == [
        "features.npy",
        "plan.npz",
    ]


def test_phases_grow_and_distil_every_stage(project: Path, tmp_path: Path) -> None:
    """Each stage has its own teacher; a model that is grown but not trained agrees with all of them."""
    exp = experiment(project, detector={"config": str(project / "cascade.py")}, calibrate=None, features=None)
    order = ["index", "split", "base", ("distill", 1), ("lst", 1), ("evaluate", "phase1")]
    paths = run_stages(exp, tmp_path / "results", *order)
    teacher = TeacherLogits.load(paths.teacher(1))
    assert teacher.logits.shape[2] == 3 * 5 and float(np.abs(teacher.logits).max()) <= 1
    assert not np.allclose(teacher.logits[..., :5], teacher.logits[..., 5:10])
    before, after = state_of(paths.model("base")), state_of(paths.model("phase1"))
    for k in range(3):
        assert [len(state[f"roi_head.bbox_head.{k}.fc_cls.weight"]) for state in (before, after)] == [6, 8]
    config = Config.fromfile(str(paths.config("phase1"))).model
    assert [stage.sampler.sampler.type for stage in config.train_cfg.rcnn] == ["ltpipe.ClassRestrictedSampler"] * 3
    assert paths.metrics("phase1").is_file()

    model: Any = MODELS.build(config)
    grown = expand_checkpoint(before, 5, 2, seed=1)
    assert not [key for key in model.load_state_dict(grown, strict=False).missing_keys if "parts" not in key]
    data = annotated_config(exp, paths, read_detector(exp.detector.config), phase=1, num_classes=7)
    detector = FrozenDetector(model, build_dataset(data))
    part, seen = model.roi_head.parts[0].train(), 0
    for row in detector.dataset.view.new_images.tolist():
        batch = detector.batch(row, True)
        with torch.no_grad():
            maps = model.extract_feat(batch["inputs"])
            assert part.image_losses(model.roi_head, maps, batch["data_samples"])["loss_distill"] < 1e-6
            model.roi_head.bbox_head[2].fc_cls.weight[0] += 1
            changed = part.image_losses(model.roi_head, maps, batch["data_samples"])["loss_distill"]
            model.roi_head.bbox_head[2].fc_cls.weight.copy_(grown["roi_head.bbox_head.2.fc_cls.weight"])
            similar = box_similarities(model.roi_head, maps, [s.gt_instances.bboxes for s in batch["data_samples"]], 5)
        assert changed > 1e-4 and similar.shape[1] == 15
        seen += 1
    assert seen >= 2

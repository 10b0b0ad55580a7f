"""A calibrated detector is one checkpoint and one config: mmengine's own test loop runs them on mmdet's data sets."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ltpipe.config.experiment import Experiment
from ltpipe.data.split import Split
from ltpipe.engine.training import read_checkpoint
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from ltpipe.stages import base, calibrate, evaluate, features, index, split
from tests.helpers.method_project import tiny_experiment, write_project

SHORT: dict[str, Any] = {"schedule": {"iterations": 3, "batch_size": 2, "warmup_iterations": 0}}


@pytest.fixture(scope="module", params=["class_wise", "class_agnostic"])
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """SimCal on boxes and masks per class, or on one for all classes; the project is the working directory."""
    folder = tmp_path_factory.mktemp(request.param)
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exp = tiny_experiment(
            folder,
            "merged",
            detector={"config": f"{request.param}.py"},
            base=SHORT,
            calibrate={"simcal": {"type": "simcal", "threshold": 6, "schedule": {"iterations": 3, "lr": 0.05}}},
        )
        paths = Paths("results", exp)
        for stage in (index, split, base, features):
            stage.run(exp, paths)
        calibrate.run(exp, paths, "simcal")
        evaluate.run(exp, paths, "simcal")
        yield exp, paths


def dumped(exp: Experiment, paths: Paths, work: Path) -> list[dict[str, Any]]:
    """Detections by ``Runner.test`` of the stage's config, with nothing added but mmdet's data set and evaluator."""
    config = Config.fromfile(str(paths.config("simcal")))
    names = {c["id"]: c["name"] for c in json.loads(exp.dataset.val.annotations.read_text())["categories"]}
    pipeline = [dict(step) for step in config.test_pipeline]
    pipeline[-1] = {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape", "img_shape", "scale_factor")}
    dataset = {
        "type": "CocoDataset",
        "ann_file": str(exp.dataset.val.annotations),
        "data_prefix": {"img": str(exp.dataset.val.images)},
        "metainfo": {"classes": [names[i] for i in Split.load(paths.split).order.tolist()]},
        "test_mode": True,
        "pipeline": pipeline,
    }
    sampler = {"type": "DefaultSampler", "shuffle": False}
    rcnn = config.model.test_cfg.rcnn
    rcnn.score_thr, rcnn.max_per_img = exp.evaluate.score_threshold, exp.evaluate.max_detections
    runner = Runner(
        model=config.model,
        work_dir=str(work),
        test_dataloader={"batch_size": 1, "num_workers": 0, "dataset": dataset, "sampler": sampler},
        test_evaluator={"type": "DumpDetResults", "out_file_path": str(work / "found.pkl")},
        test_cfg={"type": "TestLoop"},
        load_from=str(paths.model("simcal")),
        default_scope="mmdet",
        log_level="ERROR",
    )
    runner.test()
    return pickle.loads((work / "found.pkl").read_bytes())


def test_mmdets_test_loop_gives_the_same_detections(calibrated: tuple[Experiment, Paths], tmp_path: Path) -> None:
    exp, paths = calibrated
    ours = Predictions.open(paths.predictions("simcal"))
    order = Split.load(paths.split).order
    found = dumped(exp, paths, tmp_path)
    assert len(found) == 6
    for image in found:
        theirs, rows = image["pred_instances"], np.flatnonzero(ours.image_ids == image["img_id"])
        assert len(rows) == len(theirs["scores"]) > 0
        boxes = theirs["bboxes"].numpy()
        sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        np.testing.assert_allclose(ours.scores[rows], theirs["scores"].numpy(), rtol=1e-6)
        np.testing.assert_allclose(ours.boxes[rows], sizes, rtol=1e-5, atol=1e-4)
        assert np.array_equal(ours.category_ids[rows], order[theirs["labels"].numpy()])
        assert len(theirs["masks"]) == len(rows)


def test_nothing_of_the_detector_has_changed(calibrated: tuple[Experiment, Paths]) -> None:
    """Weights and statistics of normalisation layers are bit for bit those of the base training."""
    _, paths = calibrated
    before, after = (read_checkpoint(paths.model(name))["state_dict"] for name in ("base", "simcal"))
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert {key.split(".")[1] for key in after.keys() - before.keys()} == {"calibrator"}


def test_heads_per_class_and_for_all_classes(calibrated: tuple[Experiment, Paths]) -> None:
    exp, paths = calibrated
    outputs = 1 if "agnostic" in str(exp.detector.config) else 9
    state = read_checkpoint(paths.model("simcal"))["state_dict"]
    assert len(state["roi_head.bbox_head.fc_reg.weight"]) == 4 * outputs
    assert len(state["roi_head.mask_head.conv_logits.weight"]) == outputs
    assert len(state["roi_head.calibrator.fc_cls.weight"]) == 10

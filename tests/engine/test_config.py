"""Assembled configs: what is replaced and filled in, schedules, and that a config alone repeats a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from ltpipe.config.experiment import Experiment
from ltpipe.config.fields import Choice
from ltpipe.config.options import INJECTED
from ltpipe.config.schedules import Schedule
from ltpipe.engine.hooks import saved_states
from ltpipe.engine.loaders import loader_workers
from ltpipe.engine.model_config import (
    ClassCounts,
    assemble_model,
    build_component,
    read_detector,
    with_our_steps,
)
from ltpipe.engine.schedule import optimization
from ltpipe.engine.training import on_these_processes
from ltpipe.engine.training_config import training_config
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.run.cores import VARIABLE
from tests.helpers.configs import read_config
from tests.helpers.tiny_project import ROOT, experiment, run_stages, state_of

COUNTS = ClassCounts(images=[9, 5, 2], instances=[20, 6, 2], num_images=12, num_annotated_images=11)


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmdet")


# ---- models ----------------------------------------------------------------------------------------------------------


def test_standard_heads_are_replaced_and_know_the_classes(project: Path) -> None:
    exp = experiment(project, model={"classifier": {"type": "cosine", "scale": 5.0}, "loss": {"type": "seesaw"}})
    fragment, model = assemble_model(exp, COUNTS)
    head = model.roi_head.bbox_head
    assert (model.roi_head.type, head.type) == ("ltpipe.LTRoIHead", "ltpipe.LTBBoxHead")
    assert head.num_classes == model.roi_head.mask_head.num_classes == head.loss_cls.num_classes == 3
    assert head.cls_predictor_cfg.type == "ltpipe.CosineLinear" and head.cls_predictor_cfg.scale == 5.0
    assert "num_classes" not in head.cls_predictor_cfg, "mmdet passes the sizes of the layer itself"
    built = MODELS.build(model)
    assert built.roi_head.bbox_head.fc_cls.weight.shape[0] == 3 + 1 + 1, "seesaw has an objectness output"
    assert fragment.train_pipeline[0].type == "LoadImageFromFile"


def test_counts_are_filled_in_where_they_are_asked_for() -> None:
    found = build_component("loss", Choice(type="eql"), COUNTS)
    injected = COUNTS.injected(INJECTED)
    assert found.type == "ltpipe.EQLLoss"
    filled = {name: value for name, value in found.items() if name in injected}
    assert filled and all(value == injected[name] for name, value in filled.items())
    plain = build_component("loss", Choice(type="cross_entropy"), COUNTS)
    assert not set(plain) & (set(injected) - {"num_classes"})


def test_parts_and_evaluation_settings_reach_the_detector(project: Path) -> None:
    exp = experiment(
        project,
        model={"parts": [{"type": "fasa"}]},
        evaluate={"score_threshold": 0.03, "nms": 0.6, "max_detections": 17},
        lst=None,
        split=None,
    )
    _, model = assemble_model(exp, COUNTS)
    assert [part.type for part in model.roi_head.parts] == ["ltpipe.FASA"]
    rcnn = model.test_cfg.rcnn
    assert (rcnn.score_thr, rcnn.max_per_img, rcnn.nms.iou_threshold) == (0.03, 17, 0.6)


def test_transferred_masks_know_the_width_of_the_classifier(project: Path) -> None:
    exp = experiment(project, model={"classifier": {"type": "cosine"}, "mask": {"type": "weight_transfer"}})
    _, model = assemble_model(exp, COUNTS)
    assert model.roi_head.mask_head.class_features == model.roi_head.bbox_head.fc_out_channels == 24


def test_detectors_without_masks_need_no_mask_head(project: Path) -> None:
    _, model = assemble_model(experiment(project, detector={"config": str(project / "boxes.py")}), COUNTS)
    assert not MODELS.build(model).with_mask


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = dict(", ["not Python", ":1"]),
        ("model = undefined_name", ["cannot be read", "undefined_name"]),
        ("model = dict()\ntrain_pipeline = []", ["the detector file is incomplete", "test_pipeline"]),
        (None, ["the detector file does not exist"]),
    ],
)
def test_bad_detector_files_are_named(tmp_path: Path, text: str | None, words: list[str]) -> None:
    file = tmp_path / "detector.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as error:
        read_detector(file)
    assert all(word in str(error.value) for word in [*words, str(file)])


def test_the_upstream_spelling_of_the_temperature_is_read(tmp_path: Path) -> None:
    file = tmp_path / "upstream.py"
    file.write_text(
        "model = dict(roi_head=dict(mask_head=dict(predictor_cfg=dict(type='NormedConv2d', tempearture=20)),\n"
        "    bbox_head=[dict(cls_predictor_cfg=dict(type='NormedLinear', tempearture=8))]))\n"
        "train_pipeline = [dict(type='Resize', scale=(64, 32))]\ntest_pipeline = []\n"
    )
    fragment = read_detector(file)
    head = fragment.model.roi_head
    assert head.mask_head.predictor_cfg == {"type": "NormedConv2d", "temperature": 20}
    assert head.bbox_head[0].cls_predictor_cfg == {"type": "NormedLinear", "temperature": 8}
    assert fragment.train_pipeline == [{"type": "Resize", "scale": (64, 32)}]


def test_our_steps_keep_the_options_of_those_they_replace() -> None:
    steps = [
        {"type": "LoadImageFromFile", "to_float32": True},
        {"type": "mmdet.LoadAnnotations", "with_mask": True},
        {"type": "Resize", "scale": (96, 80)},
        {"type": "PackDetInputs", "meta_keys": ("img_id",)},
    ]
    assert with_our_steps(steps) == [
        {"type": "ltpipe.LoadImage", "to_float32": True},
        {"type": "ltpipe.LoadObjects", "with_mask": True},
        steps[2],
        {"type": "ltpipe.PackLTInputs", "meta_keys": ("img_id",)},
    ]
    assert steps[3]["type"] == "PackDetInputs", "the argument stays as it was"


# ---- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "optimizer", "wrapper"),
    [
        ({}, {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}, (None, None)),
        ({"optimizer": "adamw", "lr": 0.1}, {"type": "AdamW", "lr": 0.1, "weight_decay": 1e-4}, (None, None)),
        (
            {"bias_lr_mult": 2, "bias_decay_mult": 0, "clip_norm": 3},
            {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
            ({"bias_lr_mult": 2, "bias_decay_mult": 0}, {"max_norm": 3}),
        ),
    ],
)
def test_optimisers(schedule: dict[str, Any], optimizer: dict[str, Any], wrapper: tuple[Any, Any]) -> None:
    found = optimization(Schedule(iterations=20, **schedule), 20)
    assert found["optim_wrapper"]["optimizer"] == optimizer
    assert (found["optim_wrapper"]["paramwise_cfg"], found["optim_wrapper"]["clip_grad"]) == wrapper
    assert found["train_cfg"]["max_iters"] == 20


def configured(exp: Experiment, work: Path, **schedule: Any) -> Config:
    _, model = assemble_model(exp, COUNTS)
    return training_config(
        model,
        {"type": "ltpipe.StreamDataset"},
        Schedule(**{"iterations": 2500, "batch_size": 8, **schedule}),
        iterations=2500,
        seed=4,
        work_dir=work,
        load_from=None,
        detector=ConfigDict(test_pipeline=[]),
    )


def test_training_configs(exp: Experiment, tmp_path: Path) -> None:
    config = configured(exp, tmp_path)
    assert config.train_dataloader.batch_size == config.train_dataloader.sampler.batch_size == 8
    assert config.train_dataloader.sampler.iterations == config.train_cfg.max_iters == 2500
    assert config.default_hooks.checkpoint == {"type": "ltpipe.ResumeHook", "interval": 250}
    assert {"type": "ltpipe.StepSeedHook", "seed": 4} in config.custom_hooks
    samplers = [config.model.train_cfg.rpn.sampler, config.model.train_cfg.rcnn.sampler]
    assert [(s.type, s.salt, s.sampler.type) for s in samplers] == [
        ("ltpipe.SeededSampler", 0, "RandomSampler"),
        ("ltpipe.SeededSampler", 1, "RandomSampler"),
    ]
    assert assemble_model(exp, COUNTS)[1].train_cfg.rpn.sampler.type == "RandomSampler"
    config.dump(str(tmp_path / "config.py"))
    assert read_config(tmp_path / "config.py").to_dict() == config.to_dict()


def test_processes_and_cores_change_the_running_config_only(
    exp: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(exp, tmp_path)
    before = json.dumps(config.to_dict())
    monkeypatch.setenv(VARIABLE, "12")
    for world, workers in ((1, 8), (2, 4), (4, 1), (12, 0)):
        monkeypatch.setattr("ltpipe.engine.training.get_world_size", lambda world=world: world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
        assert loader_workers() == workers
        running = on_these_processes(config)
        assert running.train_dataloader.batch_size == 8 // world
        assert running.train_dataloader.num_workers == workers
        assert running.train_dataloader.persistent_workers == (workers > 0)
        assert running.get("launcher", "none") == ("none" if world == 1 else "pytorch")
    assert json.dumps(config.to_dict()) == before


# ---- a config alone --------------------------------------------------------------------------------------------------


# Both have what takes long to import, but nothing of ltpipe.
ALONE = """
import os, sys
import mmdet.datasets, mmdet.models, torch._dynamo
from mmengine.config import Config
from mmengine.runner import Runner
assert not any(name.startswith("ltpipe") for name in sys.modules)
children = []
for file, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    children.append(os.fork())
    if not children[-1]:
        config = Config.fromfile(file)
        config.work_dir = folder
        Runner.from_cfg(config).train()
        sys.exit()
sys.exit(max(os.waitpid(child, 0)[1] for child in children) > 0)
"""


def test_a_config_alone_repeats_the_training(project: Path, tmp_path: Path) -> None:
    """What a stage writes beside its weights is all that mmengine needs to make them again, and to come to an end."""
    exp = experiment(project)
    paths = run_stages(exp, tmp_path / "results", "index", "split", "base", ("distill", 1), ("lst", 1))
    stages = {stage: tmp_path / f"{stage} alone" for stage in ("base", "phase1")}
    assert Config.fromfile(str(paths.config("base"))).train_dataloader.num_workers == 2
    asked = [str(word) for stage, folder in stages.items() for word in (paths.config(stage), folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", ALONE, *asked], check=True, timeout=240, env=environment)
    for stage, folder in stages.items():
        expected = state_of(paths.model(stage))
        found = torch.load(saved_states(folder)[0], weights_only=False)["state_dict"]
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_the_seed_changes_the_training(project: Path, paths: Paths, tmp_path: Path) -> None:
    states = []
    for seed in (0, 1):
        exp = experiment(project, seed=seed, base={"schedule": {"iterations": 1}})
        run_stages(exp, tmp_path / str(seed), "index", "split", "base")
        states.append(state_of(Paths(tmp_path / str(seed), exp).model("base")))
    assert not torch.equal(states[0]["backbone.conv1.weight"], states[1]["backbone.conv1.weight"])

"""Held-out images and the hooks of head parts, through the stages."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_project import tiny_experiment, write_project
from mmengine.config import Config

from ltpipe.cores import VARIABLE
from ltpipe.data.holdout import load_holdout
from ltpipe.data.phase import PhaseView
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.engine.between_epochs import part_hooks
from ltpipe.engine.config import read_detector
from ltpipe.engine.predict import build_dataset
from ltpipe.methods.fasa_hook import FASAAdaptationHook
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.stages import base, index, lst, split

FASA = {"parts": [{"type": "fasa", "instance_prob_scale": 5.0}]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with indexed data, as working directory."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exp = tiny_experiment(folder, "plain")
        index.run(exp, Paths("results", exp))
        yield folder


def prepared(project: Path, name: str, **blocks: Any) -> tuple[Experiment, Paths]:
    exp = tiny_experiment(project, name, **blocks)
    paths = Paths("results", exp)
    split.run(exp, paths)
    return exp, paths


def hooks_of(exp: Experiment, paths: Paths, classes: int = 9) -> list[dict[str, Any]]:
    fragment = read_detector(exp.detector.config)
    return part_hooks(exp, paths, fragment, phase=0, num_classes=classes, seed=0, iterations_per_epoch=6)


def state(paths: Paths, checkpoint: str = "base") -> dict[str, torch.Tensor]:
    return torch.load(paths.model(checkpoint), weights_only=True)["state_dict"]


def test_no_holdout_unless_a_part_asks(project: Path) -> None:
    exp, paths = prepared(project, "plain")
    assert not paths.holdout.exists() and hooks_of(exp, paths) == []
    exp, paths = prepared(project, "on_val", model={"parts": [{"type": "fasa", "preset": "repro"}]})
    assert not paths.holdout.exists()
    (hook,) = hooks_of(exp, paths)
    assert hook["dataloader"]["dataset"]["store"].endswith("val")
    assert len(build_dataset(hook["dataloader"]["dataset"])) == 6


def test_held_out_images_are_never_trained_on(project: Path) -> None:
    exp, paths = prepared(project, "held", model=FASA)
    store, classes = AnnotationStore.open(paths.store("train")), Split.load(paths.split)
    held = load_holdout(paths.holdout)
    (hook,) = hooks_of(exp, paths)
    images = build_dataset(hook["dataloader"]["dataset"])
    assert [images[i]["data_samples"].img_id for i in range(len(images))] == held.tolist()
    assert all(len(images[i]["data_samples"].gt_instances) for i in range(len(images)))
    whole, kept = PhaseView(store, classes, 0), PhaseView(store, classes, 0, exclude=held)
    assert set(kept.image_ids) == set(whole.image_ids) - set(held)
    base.run(exp, paths)
    record = json.loads(paths.record("base").read_text())
    history = [f"history/fasa/epoch_{epoch}.npz" for epoch in range(18 // 5)]
    assert [name for name in record["outputs"] if "fasa" in name] == history, "beside the checkpoint, as results"
    with np.load(paths.folder("base") / history[-1]) as last:
        assert np.array_equal(last["prob"], state(paths)["roi_head.parts.0.prob"].numpy())
    stream = build_dataset(Config.fromfile(paths.config("base")).train_dataloader.dataset).stream
    seen = {int(store.image_ids[stream[i]]) for i in range(3 * stream.epoch_length())}
    assert seen == set(kept.image_ids.tolist())


def test_a_pass_does_not_depend_on_what_was_drawn_before(project: Path) -> None:
    exp, paths = prepared(project, "repeat", model=FASA)
    images = build_dataset(hooks_of(exp, paths)[0]["dataloader"]["dataset"])
    first = images[0]
    np.random.seed(5)
    again = images[0]
    assert torch.equal(first["inputs"], again["inputs"])
    metainfo = first["data_samples"].gt_instances.metainfo
    assert metainfo == again["data_samples"].gt_instances.metainfo and "sample_seed" in metainfo


def test_fasa_resumes_exactly(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with two loaders, of both of which all processes were told to stop before, as Slurm does."""
    whole, whole_paths = prepared(project, "whole", model=FASA)
    base.run(whole, whole_paths)
    exp, paths = prepared(project, "killed", model=FASA)
    before = FASAAdaptationHook.before_train_iter

    def killed(self: FASAAdaptationHook, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == 12:
            loaders = [str(process.pid) for process in multiprocessing.active_children()]
            assert len(loaders) >= 4
            subprocess.run(["kill", "-TERM", *loaders], check=True)
        if runner.iter == 15:
            raise KeyboardInterrupt
        before(self, runner, batch_idx, data_batch)

    monkeypatch.setenv(VARIABLE, "4")
    with monkeypatch.context() as patch:
        patch.setattr(FASAAdaptationHook, "before_train_iter", killed)
        with pytest.raises(KeyboardInterrupt):
            base.run(exp, paths)
    assert list(paths.work("base").glob("iter_*.pth"))
    base.run(exp, paths)
    expected, resumed = state(whole_paths), state(paths)
    assert expected.keys() == resumed.keys()
    for key, value in expected.items():
        assert torch.equal(value, resumed[key]), key
    assert int(expected["roi_head.parts.0.iteration"]) == 18 - 5, "drawn from the second epoch of five iterations"
    assert float(expected["roi_head.parts.0.prev_loss"].sum()) > 0
    assert bool((expected["roi_head.parts.0.prob"] > 0).any())


@pytest.mark.parametrize("loss", ["seesaw", "eqlv2"])
def test_statistics_start_anew_in_a_phase(project: Path, loss: str) -> None:
    blocks: dict[str, Any] = {
        "split": {"boundaries": [6, 9]},
        "lst": {
            "schedule": {"iterations": 4, "batch_size": 4},
            "rois": {"num": 16},
            "distill": {"teacher": "online"},
        },
        "base": {"schedule": {"iterations": 6, "batch_size": 4, "warmup_iterations": 0}},
        "model": {**FASA, "loss": {"type": loss}, "classifier": {"type": "cosine"}},
    }
    if loss == "seesaw":
        blocks["lst"]["distill"] = {"teacher": "none"}
        blocks["model"]["classifier"] = {"type": "normed_linear"}
    exp, paths = prepared(project, f"phases_{loss}", **blocks)
    base.run(exp, paths)
    lst.run(exp, paths, phase=1)
    old, new = state(paths), state(paths, "phase1")
    prefix = "roi_head.parts.0."
    assert old[f"{prefix}prob"].shape == (6,) and new[f"{prefix}prob"].shape == (9,)
    assert int(new[f"{prefix}iteration"]) < 4 and bool(new[f"{prefix}seen"].any())
    name = {"seesaw": "cum_samples", "eqlv2": "pos_grad"}[loss]
    assert len(new[f"roi_head.bbox_head.loss_cls.{name}"]) == len(old[f"roi_head.bbox_head.loss_cls.{name}"]) + 3

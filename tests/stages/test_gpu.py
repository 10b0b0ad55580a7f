"""Whole chains on a GPU: ``pytest -m gpu``, which also runs the contract of every method there.

Nothing of this runs where there is no GPU; what a CPU can tell of devices is in ``tests/engine/test_devices.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ltpipe.config.experiment import Experiment
from ltpipe.data.tables import read_csv
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import command_line, experiment, state_of

if TYPE_CHECKING:
    from conftest import Chain

pytestmark = pytest.mark.gpu
STAGES = ["index", "split", "base", "distill 1", "lst 1", "distill 2", "lst 2", "features", "calibrate simcal"]
SCHEDULES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "channels_last": {"precision": "bf16", "channels_last": True},
    "accumulated": {"accumulate": 2, "ema": {}, "activation_checkpointing": True},
}


def ran(exp: Experiment, results: Path, *stages: str) -> Paths:
    """Run stages by the command line, each in a process of its own."""
    for stage in stages:
        verb, *key = stage.split()
        code, error = command_line(verb, exp.file, *key, "--results", results)
        assert code == 0, error
    return Paths(results, exp)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_chain(chain: Chain, tmp_path: Path, name: str) -> None:
    schedule = SCHEDULES[name]
    exp = experiment(chain.folder, base={"schedule": schedule}, lst={"schedule": schedule})
    paths = ran(exp, tmp_path, *STAGES, "evaluate simcal", "evaluate phase2")
    for checkpoint in ("base", "phase1", "phase2", "simcal"):
        assert all(value.isfinite().all() for value in state_of(paths.model(checkpoint)).values())
    assert torch.cuda.get_device_name(0) in json.loads(paths.record("base").read_text())["device"]
    assert read_csv(paths.per_class("simcal"))["AP"].notna().any()


def test_a_training_starts_as_on_a_cpu(chain: Chain, tmp_path: Path) -> None:
    """The first losses, before rounding adds up."""
    paths = ran(experiment(chain.folder), tmp_path, "index", "split", "base")
    here, there = (read_csv(p.folder("base") / "history" / "training.csv") for p in (paths, chain.paths))
    for loss in [column for column in there.columns if "loss" in column]:
        assert here[loss][0] == pytest.approx(there[loss][0], rel=1e-3, abs=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: NCCL needs one for each process")
def test_several_gpus(chain: Chain, tmp_path: Path) -> None:
    schedule = {"schedule": {"batch_size": 2 * torch.cuda.device_count()}}
    exp = experiment(chain.folder, base=schedule, lst=schedule)
    processes = f"--processes {torch.cuda.device_count()}"
    ran(exp, tmp_path, "index", "split", f"base {processes}", f"distill 1 {processes}", f"lst 1 {processes}")

"""What a schedule may ask for, through whole stages: half precision, several passes per step, averages, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltpipe.config.checks import check_settings
from ltpipe.config.experiment import Experiment
from ltpipe.engine.inspection import inspect_detector
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import stage_digest
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import (
    assert_same_state,
    copied,
    experiment,
    kill_here,
    run_stages,
    state_of,
    together,
)
from tests.helpers.trainings import cut_short, iterations_of

EVERYTHING = {
    "precision": "bf16",
    "accumulate": 2,
    "ema": {"momentum": 0.3},
    "decay": "cosine",
    "lr_mult": {"backbone": 0.5},
    "channels_last": True,
    "activation_checkpointing": True,
    "clip_norm": 10,
}


def scheduled(project: Path, **schedule: Any) -> Experiment:
    return experiment(project, base={"schedule": {"batch_size": 4, **schedule}}, lst={"schedule": schedule})


@pytest.fixture(scope="module")
def indexed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("indexed")
    run_stages(experiment(project), results, "index", "split")
    return results


def trained(indexed: Path, target: Path, exp: Experiment) -> Paths:
    return run_stages(exp, copied(indexed, target), "base")


def test_everything_together_cut_short_continues_to_the_same_bits(project: Path, indexed: Path, tmp_path: Path) -> None:
    exp = scheduled(project, **EVERYTHING)
    whole, cut = (Paths(copied(indexed, tmp_path / kind), exp) for kind in ("whole", "cut"))
    assert iterations_of(exp, whole, "base") == list(range(8)), "four steps of two passes"
    assert cut_short(exp, cut, "base", None, 5, kill_here) == -9
    assert iterations_of(exp, cut, "base") == [4, 5, 6, 7], "states are of whole steps"
    assert_same_state(whole.model("base"), cut.model("base"))
    run_stages(exp, whole.results, ("distill", 1), ("lst", 1), ("evaluate", "phase1"))
    assert whole.record("evaluate", "phase1").is_file()


def test_the_average_is_the_result(project: Path, indexed: Path, tmp_path: Path) -> None:
    """With m after each step it is (1 - m) times itself plus m times the weights, from those after the first step."""
    seen: list[dict[str, torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        from ltpipe.engine.averaging import WeightAverageHook

        update = WeightAverageHook.after_train_iter

        def after(self: Any, runner: Any, *rest: Any, **more: Any) -> None:
            seen.append({name: value.detach().clone() for name, value in runner.model.named_parameters()})
            update(self, runner, *rest, **more)

        patch.setattr(WeightAverageHook, "after_train_iter", after)
        paths = trained(indexed, tmp_path / "averaged", scheduled(project, ema={"momentum": 0.25}, accumulate=2))
    found = state_of(paths.model("base"))
    steps = seen[1::2]
    assert len(seen) == 8
    for name, mean in steps[0].items():
        for later in steps[1:]:
            mean = 0.75 * mean + 0.25 * later[name]
        torch.testing.assert_close(found[name], mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"ema": {"momentum": 0.999999999}}])
def test_what_changes_memory_or_averages_nothing_keeps_the_weights(
    project: Path, indexed: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    one, other = (trained(indexed, tmp_path / name, scheduled(project, **o)) for name, o in (("a", {}), ("b", option)))
    found, expected = state_of(one.model("base")), state_of(other.model("base"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_two_processes_share_the_passes(project: Path, indexed: Path, tmp_path: Path) -> None:
    """A detector without masks whose losses are means over equal numbers of RoIs learns the same."""
    blocks = {
        "detector": {"config": str(project / "boxes.py")},
        "evaluate": {"iou_types": ["bbox"]},
        "base": {"schedule": {"iterations": 3, "batch_size": 4, "accumulate": 2, "ema": {}}},
    }
    exp = experiment(project, **blocks)
    one = trained(indexed, tmp_path / "one", exp)
    two = Paths(copied(indexed, tmp_path / "two"), exp)
    together(lambda: run_stages(exp, two.results, "base") and None, 2)
    found, expected = state_of(two.model("base")), state_of(one.model("base"))
    for name, value in expected.items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_defaults_change_no_digest(project: Path) -> None:
    written = {"precision": "fp32", "accumulate": 1, "decay": "steps", "lr_mult": {}, "channels_last": False}
    for stage, key in (("base", None), ("lst", 1), ("validate", None)):
        assert stage_digest(scheduled(project), stage, key) == stage_digest(scheduled(project, **written), stage, key)
    assert stage_digest(scheduled(project), "base") != stage_digest(scheduled(project, precision="bf16"), "base")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"accumulate": 3}, "3 passes cannot share a batch of 4"),
        ({"decay": "cosine", "gamma": 0.2}, "drops and gamma belong to decay: steps"),
        ({"final_lr": 0.1}, "belong to decay: cosine or polynomial"),
        ({"decay": "cosine", "power": 2}, "belongs to decay: polynomial"),
        ({"precision": "int8"}, "fp32, bf16, fp16"),
        ({"ema": {"momentum": 1.5}}, "less than 1"),
    ],
)
def test_schedules_that_are_refused(project: Path, schedule: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        scheduled(project, **schedule)


def test_calibrators_have_plain_steps(project: Path) -> None:
    with pytest.raises(UserError, match="unknown key"):
        experiment(project, calibrate={"simcal": {"schedule": {"precision": "bf16"}}})


def test_parts_and_backbones_are_checked_before_anything_is_queued(project: Path) -> None:
    exp = scheduled(project, lr_mult={"backbon.layer1": 0.1})
    check_settings(exp)
    with pytest.raises(UserError, match="no parameter of the detector has this in its name"):
        inspect_detector(exp)
    (project / "other.py").write_text(
        (project / "detector.py")
        .read_text()
        .replace("backbone=dict(base_channels=8)", "backbone=BACKBONE")
        .replace(
            "model = dict(",
            "BACKBONE = dict(_delete_=True, type='CSPNeXt', widen_factor=0.125, "
            "deepen_factor=0.33, out_indices=(1, 2, 3, 4))\nmodel = dict(",
        )
        .replace("[8, 16, 32, 64]", "[16, 32, 64, 128]")
    )
    exp = experiment(
        project,
        detector={"config": str(project / "other.py")},
        base={"schedule": {"activation_checkpointing": True}},
    )
    with pytest.raises(UserError, match="cannot compute its activations again"):
        inspect_detector(exp)

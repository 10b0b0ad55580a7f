"""Curves of trainings, and validation while training: kept beside the weights, drawn in the report, without effect."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from ltpipe.checkpoints.torch_files import load_plain
from ltpipe.config.checks import check_settings
from ltpipe.config.experiment import Experiment
from ltpipe.config.schedules import Validation
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.records import read_json
from tests.helpers.tiny_project import assert_same_state, copied, experiment, kill_here, run_stages, state_of, together
from tests.helpers.trainings import cut_short

BLOCKS = {"lst": None, "split": None, "calibrate": None, "features": None}


@pytest.fixture(scope="module")
def indexed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("indexed")
    run_stages(one_shot(project), results, "index", "split")
    return results


def one_shot(project: Path, **schedule: Any) -> Experiment:
    return experiment(project, base={"schedule": {"batch_size": 4, **schedule}}, **BLOCKS)


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_training_cut_short_ends_with_the_same_curves_and_weights(
    project: Path, indexed: Path, tmp_path: Path
) -> None:
    """With validation, too, and the best weights; and the weights are those of a training without it."""
    plain = run_stages(one_shot(project), copied(indexed, tmp_path / "plain"), "base")
    watched = one_shot(project, validation={"every": 1, "images": 4})
    whole, cut = (Paths(copied(indexed, tmp_path / kind), watched) for kind in ("whole", "cut"))
    run_stages(watched, whole.results, "base")
    assert cut_short(watched, cut, "base", None, 3, kill_here) == -9
    run_stages(watched, cut.results, "base")
    assert_same_state(plain.model("base"), whole.model("base"))
    assert_same_state(plain.model("base"), cut.model("base"))
    for name in ("training", "validation"):
        assert whole.curve("base", None, name).read_bytes() == cut.curve("base", None, name).read_bytes()
    table = rows(whole.curve("base", None, "training"))
    assert table == rows(plain.curve("base", None, "training"))
    assert [int(row["iteration"]) for row in table] == [1, 2, 3, 4]
    for row in table:
        terms = [float(value) for name, value in row.items() if "loss" in name and name != "loss"]
        assert sum(terms) == pytest.approx(float(row["loss"]), rel=1e-5) and float(row["grad_norm"]) > 0
    assert float(table[0]["lr"]) == pytest.approx(0.01 * (1 / 3 + 2 / 3 / 2))
    measured = rows(whole.curve("base", None, "validation"))
    assert [row["iteration"] for row in measured] == ["1", "2", "3", "4"]
    assert {"bbox/AP", "segm/AP"} <= measured[0].keys()
    outputs = read_json(whole.record("base"))["outputs"]
    assert {"history/training.csv", "history/validation.csv"} <= outputs.keys()

    run_stages(watched, whole.results, ("evaluate", "base"), "report")
    assert (whole.figures / "curve_tiny_base.png").is_file()
    assert "How the trainings went" in whole.report.read_text()


def test_the_best_weights_are_the_result(
    project: Path, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are given: the second validation is the best one and the earlier of equals, also after a kill."""
    count = tmp_path / "count"
    count.write_text("")

    def given(*_: Any, **__: Any) -> dict[str, float]:
        count.write_text(count.read_text() + ".")
        return dict.fromkeys(Validation.names, [0.1, 0.5, 0.5, 0.2][(len(count.read_text()) - 1) // 2])

    monkeypatch.setattr("ltpipe.stages.detector_training.summarize", given)
    exp = one_shot(project, validation={"every": 1, "images": 2, "keep": {"best": "segm/APr"}})
    paths = Paths(copied(indexed, tmp_path / "cut"), exp)
    assert cut_short(exp, paths, "base", None, 3, kill_here) == -9
    second = load_plain(paths.work("base") / "iter_2.pth")["state_dict"]
    run_stages(exp, paths.results, "base")
    assert read_json(paths.record("base"))["best_iteration"] == 2 and len(count.read_text()) == 2 * 4
    found = state_of(paths.model("base"))
    assert found.keys() == second.keys() and all(torch.equal(found[key], second[key]) for key in found)


def test_processes_measure_the_same(project: Path, indexed: Path, tmp_path: Path) -> None:
    """Two processes that learn nothing (lr is tiny) see the same detections as one, and write one table."""
    exp = experiment(
        project,
        detector={"config": str(project / "boxes.py")},
        evaluate={"iou_types": ["bbox"]},
        base={"schedule": {"iterations": 1, "batch_size": 4, "lr": 1e-30, "validation": {"every": 1, "images": 5}}},
        **BLOCKS,
    )
    one, two = (Paths(copied(indexed, tmp_path / name), exp) for name in ("one", "two"))
    run_stages(exp, one.results, "base")
    together(lambda: run_stages(exp, two.results, "base") and None, 2)
    assert rows(one.curve("base", None, "validation")) == rows(two.curve("base", None, "validation"))
    assert len(rows(two.curve("base", None, "training"))) == 1


def test_what_decides_must_be_measured(project: Path) -> None:
    exp = one_shot(project, validation={"every": 1, "keep": {"best": "segm/AP"}})
    check_settings(exp)
    boxes = exp.model_copy(update={"evaluate": exp.evaluate.model_copy(update={"iou_types": ("bbox",)})})
    with pytest.raises(UserError, match="chosen by what is not measured"):
        check_settings(boxes)
    with pytest.raises(UserError, match="best"):
        one_shot(project, validation={"every": 1, "keep": {"best": "AP"}})


def test_a_training_can_be_watched_in_tensorboard(
    project: Path, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "pipeline.yaml").write_text("loggers: [{type: tensorboard, folder: watched}]\n")
    monkeypatch.chdir(tmp_path)
    exp = one_shot(project, iterations=2, validation={"every": 2, "images": 2})
    paths = run_stages(exp, copied(indexed, tmp_path / "results"), "base")
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard" / "tiny" / "base"))
    events.Reload()
    table = rows(paths.curve("base", None, "training"))
    seen = {event.step: event.value for event in events.Scalars("loss")}
    assert seen[1] == pytest.approx(float(table[0]["loss"]), rel=1e-5) and set(seen) == {1, 2}
    assert [event.step for event in events.Scalars("val/bbox/AP")] == [2]
    assert "ensorboard" not in paths.config("base").read_text()


@pytest.mark.loggers
def test_a_training_can_be_watched_in_wandb_offline(
    project: Path, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real package, which sends nothing: a run file with the experiment's name and the losses in it."""
    (tmp_path / "configs").mkdir()
    logger = "{type: wandb, project: tails, folder: watched, options: {mode: offline}}"
    (tmp_path / "configs" / "pipeline.yaml").write_text(f"loggers: [{logger}]\n")
    monkeypatch.chdir(tmp_path)
    run_stages(one_shot(project, iterations=2), copied(indexed, tmp_path / "results"), "base")
    (file,) = tmp_path.rglob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"tails" in content and b"tiny base" in content and b"loss_rpn_cls" in content

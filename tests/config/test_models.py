"""Schedules, phases, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from ltpipe.config.blocks import Evaluate
from ltpipe.config.experiment import Schedule, Split
from ltpipe.config.schedules import CalibrationSchedule, IncrementalSchedule
from ltpipe.config.training_blocks import Lst, Replay
from ltpipe.errors import UserError
from tests.helpers.small_project import Load


@pytest.mark.parametrize(("epochs", "length", "batch"), [(12, 1001, 16), (7.2, 55648, 8), (1, 1, 16), (0.01, 10, 4)])
def test_epochs_become_iterations(epochs: float, length: int, batch: int) -> None:
    schedule = Schedule(epochs=epochs, batch_size=batch)
    total = schedule.total_iterations(length)
    assert total == max(1, math.ceil(epochs * length / batch))
    assert all(0 <= drop <= total for drop in schedule.drop_iterations(total))


def test_iterations_are_taken_as_they_are() -> None:
    assert Schedule(iterations=50000).total_iterations(3) == 50000
    assert Schedule(iterations=50000, drops=(30000, 40000)).drop_iterations(50000) == [30000, 40000]


def test_defaults_of_the_sources() -> None:
    assert CalibrationSchedule().total_iterations(1) == 12000
    assert CalibrationSchedule().drop_iterations(12000) == [7000, 10000]
    phase = IncrementalSchedule()
    # Twelve epochs of the balanced lists of LVIS v0.5, 270 + 6 x 160, at batch 16.
    lengths = [16352 + 25150, 6514 + 14109, 3283 + 9184, 1688 + 5955, 744 + 2997, 263 + 1334]
    assert [phase.total_iterations(n) for n in lengths] == [31127, 15468, 9351, 5733, 2806, 1198]
    assert phase.drop_iterations(1000) == [600, 800]


@pytest.mark.parametrize(
    ("split", "classes", "boundaries"),
    [
        (Split(base_classes=270, step=160), 1230, [270, 430, 590, 750, 910, 1070, 1230]),
        (Split(base_classes=270, step=160), 1203, [270, 430, 590, 750, 910, 1070, 1203]),
        (Split(base_classes=5, step=10), 6, [5, 6]),
        (Split(boundaries=(4, 6, 8)), 8, [4, 6, 8]),
    ],
)
def test_boundaries(split: Split, classes: int, boundaries: list[int]) -> None:
    assert split.phase_boundaries(classes) == boundaries


def test_phases_and_checkpoints(load: Load) -> None:
    exp = load()
    assert exp.num_phases() == 2 and exp.num_phases(5) == 1
    assert exp.checkpoints() == ["base", "phase1", "phase2", "head"]
    assert exp.final_checkpoint() == "phase2"


def test_evaluated_checkpoints_keep_their_order(load: Load) -> None:
    exp = load("report:", "evaluate: {checkpoints: [head, base]}\nreport:")
    assert exp.evaluated_checkpoints() == ["base", "head"]
    exp = load("report:", "evaluate: {checkpoints: [head, phase9]}\nreport:")
    with pytest.raises(UserError, match="phase9"):
        exp.evaluated_checkpoints()


def test_a_base_that_leaves_no_phase(load: Load) -> None:
    with pytest.raises(UserError, match="no phase is left"):
        load("base_classes: 2", "base_classes: 6").num_phases()


def test_classes_are_unknown_without_any_list(load: Load) -> None:
    exp = load()
    Path("data/train.json").unlink()
    with pytest.raises(UserError, match="class_list"):
        exp.num_phases()
    boundaries = load("{base_classes: 2, step: 3}", "{boundaries: [2, 6]}")
    assert boundaries.num_phases() == 1


def test_iterations_per_phase(load: Load) -> None:
    lst = load("{iterations: 10}", "{iterations: 10}\n  iterations_per_phase: [3, 4]").lst
    assert lst is not None
    assert [lst.phase_iterations(k, 100) for k in (1, 2)] == [3, 4]


def test_experiments_are_immutable(load: Load) -> None:
    with pytest.raises(ValidationError):
        load().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("bins", [[], [10, 10], [100, 10]])
def test_bins_ascend(bins: list[int]) -> None:
    with pytest.raises(ValidationError, match="bins must ascend"):
        Evaluate(bins=bins)


def test_rows_of_the_published_replay_layout_share_the_batch() -> None:
    Lst(replay=Replay(layout="legacy", rows=8))
    with pytest.raises(ValidationError, match="12 cannot be shared by 8 rows"):
        Lst(replay=Replay(layout="legacy"), schedule=IncrementalSchedule(batch_size=12))

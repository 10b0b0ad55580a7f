"""Stored features and the disk they need."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ltpipe.data.calibration_rois import RoiSampling
from ltpipe.data.calibration_rows import bound_rows, plan_features
from ltpipe.engine import features, shards
from ltpipe.engine.feature_rows import StoredRows
from ltpipe.engine.features import write_features
from ltpipe.errors import UserError


class Boxes:
    """A detector whose features are the boxes themselves, four channels of one value."""

    pooled: list[int]

    def __init__(self) -> None:
        self.pooled = []

    def shape_at(self, level: str) -> tuple[int, ...]:
        return (4, 1, 1)

    def pool(self, row: int, flip: bool, boxes: Any, level: str) -> dict[int, torch.Tensor]:
        self.pooled.append(row)
        return {stage: torch.from_numpy(b).reshape(-1, 4, 1, 1) + row + 100 * stage for stage, b in boxes.items()}


UNITS = [(10, False), (20, True), (30, False)]
BOXES = [np.full((n, 4), n, np.float32) for n in (2, 0, 3)]


def free(monkeypatch: pytest.MonkeyPatch, space: int) -> None:
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=space))


def test_size_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five rows of four float16 numbers are 40 bytes; a twentieth of the disk stays free."""
    detector = Boxes()
    free(monkeypatch, 42)
    with pytest.raises(UserError) as caught:
        write_features(detector, UNITS, [BOXES], [tmp_path / "f.npy"], "float16", tmp_path)
    assert "do not fit on the disk" in str(caught.value) and "features.level" in str(caught.value)
    assert not detector.pooled and not list(tmp_path.iterdir())
    assert "5 boxes" in capsys.readouterr().out

    free(monkeypatch, 43)
    write_features(detector, UNITS, [BOXES], [tmp_path / "f.npy"], "float16", tmp_path)
    stored = np.load(tmp_path / "f.npy")
    assert detector.pooled == [10, 30] and stored.dtype == np.float16
    assert stored[:, 0, 0, 0].tolist() == [12, 12, 33, 33, 33]


def test_a_killed_run_does_not_pay_twice_for_its_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has reserved on the disk is taken into account when it continues."""
    free(monkeypatch, 43)
    (tmp_path / "features.npy").write_bytes(b"\0" * 8192)
    features.check_space(tmp_path, (200, 200), (4,), "float16", reserved=[tmp_path / "features.npy"])
    with pytest.raises(UserError, match="do not fit"):
        features.check_space(tmp_path, (200, 200), (4,), "float16")


def test_bounds_are_shown_before_the_proposals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free(monkeypatch, 100)
    features.check_space(tmp_path, (5, 10), (4,), "float16")
    out = capsys.readouterr().out
    assert "5 to 10 boxes" in out and "may not fit" not in out
    features.check_space(tmp_path, (5, 20), (4,), "float16")
    assert "may not fit" in capsys.readouterr().out
    with pytest.raises(UserError, match="do not fit"):
        features.check_space(tmp_path, (13, 20), (4,), "float16")


@pytest.mark.parametrize(("bg_ratio", "label"), [(1.0, None), (0.5, None), (None, None), (None, -1)])
def test_bounds_hold(bg_ratio: float | None, label: int | None) -> None:
    """The plan made afterwards lies between the bounds."""
    rng = np.random.default_rng(0)
    samples = [(rng.uniform(0, 50, (3, 2)), rng.integers(0, 4, 3)) for _ in range(6)]
    boxes = [np.concatenate([c, c + 20], axis=1).astype(np.float32) for c, _ in samples]
    proposals = [np.repeat(b, 9, axis=0) + rng.normal(0, 4, (27, 4)).astype(np.float32) for b in boxes]
    candidates = SimpleNamespace(of=lambda u: (boxes[u], samples[u][1], proposals[u][None]))
    sample_of_slot = rng.integers(0, 6, 40)
    labels = np.array([samples[u][1][0] if label is None else label for u in sample_of_slot])
    sampling = RoiSampling(rois=16)
    low, high = bound_rows(sample_of_slot, labels, 4, np.full(6, 30), sampling, bg_ratio)
    (plan,) = plan_features(
        np.arange(6), np.zeros(6, bool), sample_of_slot, labels, 4, candidates, [sampling],
        num_classes=4, bg_ratio=bg_ratio, seed=0,
    )  # fmt: skip
    assert 0 < low <= len(plan.boxes) <= high <= 6 * 30
    few = bound_rows(sample_of_slot[:4], labels[:4], 4, np.full(6, 30), sampling, bg_ratio)[1]
    assert few == {1.0: 4 * 8, 0.5: 4 * 6}[bg_ratio] if bg_ratio else few <= 4 * 16
    for row in range(len(plan.boxes)):
        sample = int(np.searchsorted(plan.box_ptr, row, side="right")) - 1
        label = plan.labels[plan.rows == row][0]
        if label < 4:
            assert any(np.array_equal(plan.matched[row], b) for b in boxes[sample][samples[sample][1] == label])
        else:
            assert np.array_equal(plan.matched[row], plan.boxes[row])


def test_rows_of_a_step_come_in_its_order(tmp_path: Path) -> None:
    write_features(Boxes(), UNITS, [BOXES], [tmp_path / "f.npy"], "float32", tmp_path)
    rows = StoredRows(tmp_path / "f.npy", np.array([0, 3, 3]), np.array([4, 0, 4]), np.array([1, 2, 1]))
    x, labels = rows.step(0)
    assert len(rows) == 2 and x[:, 0, 0, 0].tolist() == [33, 12, 33] and labels.tolist() == [1, 2, 1]
    assert rows.step(1)[0].shape == (0, 4, 1, 1)


def test_stages_of_a_cascade_are_pooled_together_into_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 1)
    work, files = tmp_path / "work", [tmp_path / "f.npy", tmp_path / "f_stage1.npy"]
    work.mkdir()
    later = [BOXES[2], BOXES[0], BOXES[1]]

    class Killed(Boxes):
        def pool(self, row: int, *arguments: Any) -> dict[int, torch.Tensor]:
            if row == 30:
                raise KeyboardInterrupt
            return super().pool(row, *arguments)

    with pytest.raises(KeyboardInterrupt):
        write_features(Killed(), UNITS, [BOXES, later], files, "float32", work)
    detector = Boxes()
    write_features(detector, UNITS, [BOXES, later], files, "float32", work)
    assert detector.pooled == [30], "the samples before are kept"
    assert [np.load(file)[:, 0, 0, 0].tolist() for file in files] == [
        [12, 12, 33, 33, 33],
        [113, 113, 113, 122, 122],
    ]

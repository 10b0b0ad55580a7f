"""Stored features and the disk they need."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ltpipe.engine import features
from ltpipe.engine.features import StoredRows, write_features
from ltpipe.errors import UserError


class Boxes:
    """A detector whose features are the boxes themselves, four channels of one value."""

    pooled: list[int]

    def __init__(self) -> None:
        self.pooled = []

    def shape_at(self, level: str) -> tuple[int, ...]:
        return (4, 1, 1)

    def pool(self, row: int, flip: bool, boxes: Any, level: str) -> torch.Tensor:
        self.pooled.append(row)
        return torch.from_numpy(boxes).reshape(-1, 4, 1, 1) + row


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
        write_features(detector, UNITS, BOXES, tmp_path / "f.npy", "float16", tmp_path)
    assert "do not fit on the disk" in str(caught.value) and "features.level" in str(caught.value)
    assert not detector.pooled and not list(tmp_path.iterdir())
    assert "5 boxes" in capsys.readouterr().out

    free(monkeypatch, 43)
    write_features(detector, UNITS, BOXES, tmp_path / "f.npy", "float16", tmp_path)
    stored = np.load(tmp_path / "f.npy")
    assert detector.pooled == [10, 30] and stored.dtype == np.float16
    assert stored[:, 0, 0, 0].tolist() == [12, 12, 33, 33, 33]


def test_rows_of_a_step_come_in_its_order(tmp_path: Path) -> None:
    write_features(Boxes(), UNITS, BOXES, tmp_path / "f.npy", "float32", tmp_path)
    rows = StoredRows(tmp_path / "f.npy", np.array([0, 3, 3]), np.array([4, 0, 4]), np.array([1, 2, 1]))
    x, labels = rows.step(0)
    assert len(rows) == 2 and x[:, 0, 0, 0].tolist() == [33, 12, 33] and labels.tolist() == [1, 2, 1]
    assert rows.step(1)[0].shape == (0, 4, 1, 1)

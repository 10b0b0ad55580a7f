"""A small project: one experiment, a detector file, and annotations of six classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from tests.helpers.small_project import DETECTOR, EXPERIMENT, Load, write_annotations


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        write_annotations(Path("data") / f"{part}.json", [f"class{i}" for i in range(6)])
        (tmp_path / "data" / part).mkdir()
    Path("detector.py").write_text(DETECTOR, encoding="utf-8")
    folder = tmp_path / "configs" / "experiments"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(EXPERIMENT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def load(project: Path) -> Load:
    """Load the experiment after replacing text in its file: ``load(old, new)``."""

    def load_edited(*edits: str) -> Experiment:
        text = EXPERIMENT
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        Path("configs/experiments/small.yaml").write_text(text, encoding="utf-8")
        return load_experiment("small")

    return load_edited

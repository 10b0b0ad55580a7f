"""``configs/pipeline.yaml``: loggers by name, with options that mmengine's backends take."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config import settings
from ltpipe.config.settings import FILE, Logger, read_settings
from ltpipe.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FILE.parent.mkdir()


def written(text: str) -> None:
    FILE.write_text(text, encoding="utf-8")


def test_without_a_file_there_are_no_loggers() -> None:
    assert read_settings().loggers == ()


def test_what_a_file_says() -> None:
    written("experiments: [toy]\nstages: [mine]\nloggers:\n- {type: tensorboard, folder: boards}\n")
    (logger,) = read_settings().loggers
    assert logger.backend("toy", "base") == {
        "type": "TensorboardVisBackend",
        "save_dir": "boards/tensorboard/toy/base",
    }


def test_backends_of_other_loggers() -> None:
    wandb = Logger(type="wandb", project="tails", options={"mode": "offline"}).backend("toy", "phase1")
    assert wandb["init_kwargs"] == {"project": "tails", "name": "toy phase1", "mode": "offline"}
    mlflow = Logger(type="mlflow", options={"tracking_uri": "file:runs"}).backend("toy", "base")
    assert mlflow == {
        "type": "MLflowVisBackend",
        "save_dir": "logs/mlflow/toy/base",
        "exp_name": "ltpipe",
        "run_name": "toy base",
        "tracking_uri": "file:runs",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("logers: []", "did you mean 'loggers'"),
        ("loggers: [{type: tensorbord}]", "tensorboard"),
        ("loggers: [{type: tensorboard, options: {a: 1}}]", "tensorboard has no options"),
    ],
)
def test_what_is_wrong_is_told(text: str, words: str) -> None:
    written(text)
    with pytest.raises(UserError, match=words):
        read_settings()


def test_a_missing_package_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    written("experiments: [toy]\nloggers:\n- {type: mlflow}\n")
    with pytest.raises(UserError, match=r"pipeline.yaml:3: loggers\[0\].type"):
        read_settings()

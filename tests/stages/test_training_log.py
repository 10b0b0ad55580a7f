"""The log of a training begins with what it will do, not with the environment and the whole config."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ltpipe.cli import main
from tests.helpers.tiny_project import ended, experiment, in_child

if TYPE_CHECKING:
    from conftest import Chain


def test_the_first_screen_says_what_is_done(chain: Chain, tmp_path: Path) -> None:
    exp = experiment(chain.folder, base={"schedule": {"iterations": 2, "batch_size": 2, "lr": 0.01}})
    for name in ("datasets", "tiny/split"):
        shutil.copytree(chain.paths.results / name, tmp_path / name)

    def train() -> None:
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        assert main(["base", str(exp.file), "--results", str(tmp_path)]) == 0

    assert ended(in_child(train)) == 0
    text = (tmp_path / "log").read_text(encoding="utf-8")
    begin = text[text.index("this training:") :].splitlines()[1:6]
    assert begin[0].strip() == f"data: 24 images of {tmp_path}/datasets/tiny/train, 5 classes, phase 0"
    assert begin[1].strip() == "length: 2 iterations of 2 images"
    assert begin[2].strip() == "optimiser: SGD, learning rate 0.01"
    assert begin[3].strip().startswith("device: ")
    assert begin[4].strip().startswith("starts from: random weights")
    assert "System environment" not in text and "backbone=" not in text
    lines = text[: text.index("Iter(train)")] if "Iter(train)" in text else text
    assert len(lines.splitlines()) < 60

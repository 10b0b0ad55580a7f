"""The experiments that the README, and the page it goes on with, tell people to write."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ltpipe.config.checks import check_settings
from ltpipe.config.loading import list_experiments, load_experiment
from tests.helpers.workspace import ROOT


def test_the_experiments_of_the_readme_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = (ROOT / "README.md", ROOT / "docs" / "daily_use.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    written = dict(re.findall(r"```yaml\n# configs/experiments/(\w+)\.yaml\n(.*?)```", text, re.DOTALL))
    assert written.keys() == {"my_data", "my_phases"}
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    for name, content in written.items():
        (tmp_path / "configs" / "experiments" / f"{name}.yaml").write_text(content, encoding="utf-8")
    annotations = tmp_path / "data" / "my"
    annotations.mkdir(parents=True)
    categories = ", ".join(f'{{"id": {number}, "name": "class {number}"}}' for number in range(1, 33))
    for part in ("train", "val"):
        file = annotations / f"{part}.json"
        file.write_text(f'{{"images": [], "annotations": [], "categories": [{categories}]}}', encoding="utf-8")
    one, phases = (load_experiment(name) for name in ("my_data", "my_phases"))
    for exp in (one, phases):
        check_settings(exp, list_experiments())
        assert exp.dataset.generate is None
    assert all(len(content.splitlines()) <= 12 for content in written.values())
    assert one.checkpoints() == ["base", "simcal"]
    assert phases.checkpoints() == ["base", "phase1", "phase2", "phase3", "simcal"], "20, 25, 30 and 32 classes"

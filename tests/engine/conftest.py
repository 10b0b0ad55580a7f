"""The tiny project, indexed and split."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_project import experiment, run_stages, write_project

from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data and detector files."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


@pytest.fixture(scope="session")
def exp(project: Path) -> Experiment:
    """The experiment with a linear classifier."""
    return experiment(project, model={"classifier": {"type": "linear"}})


@pytest.fixture(scope="session")
def paths(project: Path, exp: Experiment) -> Paths:
    """Its artefacts up to the split."""
    return run_stages(exp, project / "results", "index", "split")

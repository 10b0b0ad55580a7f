"""The tiny project and its trained chain, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.paths import Paths
from tests.helpers.tiny_project import copied, experiment, run_stages, write_project


@dataclass(frozen=True)
class Chain:
    """A finished chain.

    Attributes:
        folder: The project: data, detector and experiment.
        exp: The experiment.
        paths: Its artefacts; not to be changed, see :meth:`copy`.
    """

    folder: Path
    exp: Experiment
    paths: Paths

    def copy(self, target: Path, exp: Experiment | None = None) -> Paths:
        """Return the paths of a copy of all results."""
        return Paths(copied(self.paths.results, target / "results"), exp or self.exp)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data and detector files."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


@pytest.fixture(scope="session")
def chain(project: Path) -> Chain:
    """Everything up to the features."""
    exp = experiment(project)
    order = ["index", "split", "base", ("distill", 1), ("lst", 1), ("distill", 2), ("lst", 2), "features"]
    return Chain(project, exp, run_stages(exp, project / "results", *order))

"""Workspaces shared by the tests of the workflow."""

from __future__ import annotations

import pytest

from tests.helpers.workspace import Workspace


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which nothing has run."""
    return Workspace(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the chain of ``joint`` and ``chain`` has run."""
    workspace = Workspace(tmp_path_factory.mktemp("finished"))
    workspace.snakemake("--cores", "2", "all")
    return workspace

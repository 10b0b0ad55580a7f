"""A fresh local Slurm for every test that asks for one; such tests carry the marker ``slurm``."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing
from tests.slurm.tiny_run import Project


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., Cluster]]:
    """Start a cluster with the options of :class:`Cluster`; it is stopped and removed after the test."""
    running: list[Cluster] = []
    # A test run that is told to end must not leave a cluster behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def start(**options: int) -> Cluster:
        reason = missing(accounting=bool(options.get("accounting")))
        if reason is not None:
            pytest.fail(f"{reason}; docs/cluster.md names the packages")
        cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm")), **options)  # type: ignore[arg-type]
        running.append(cluster)
        cluster.start()
        return cluster

    yield start
    for cluster in running:
        cluster.stop()
        shutil.rmtree(cluster.folder)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def start_project(start_cluster: Callable[..., Cluster], tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """Make a :class:`tiny_run.Project`, with its options, on a cluster of its own."""
    projects: list[Project] = []

    def start(**options: int) -> Project:
        accounting = bool(options.pop("accounting", False))
        cluster = start_cluster(cpus=16, memory=200000, accounting=accounting)
        projects.append(Project(tmp_path / "w", cluster, **options))
        return projects[-1]

    yield start
    for project in projects:
        project.stop()

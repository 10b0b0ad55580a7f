"""Faults of a cluster on a real local Slurm. The long version is ``python -m tests.faults --slurm``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.driver import EQUAL, first_that_strikes
from tests.faults.injections import INJECTIONS
from tests.faults.on_slurm import SIZE
from tests.faults.project import Project, Stage
from tests.slurm.cluster import Cluster, missing

FAULTS = [
    ("scancel", Stage("base", None)),
    ("scontrol requeue", Stage("distill", 2)),
    ("preempted, requeued", Stage("lst", 1)),
    ("slurmd killed and started", Stage("features", None)),
    ("node lost, stage goes on", Stage("lst", 2)),
    ("Snakemake killed, job goes on", Stage("evaluate", "phase2")),
]
pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The tiny project, its undisturbed run without Slurm, and a cluster for the disturbed ones."""
    reason = missing()
    if reason is not None:
        pytest.fail(f"{reason}; docs/cluster.md names the packages")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    try:
        with Cluster(folder, **SIZE) as cluster:
            made = Project(tmp_path_factory.mktemp("faults") / "tiny", cluster)
            try:
                made.run_undisturbed(1)
                yield made
            finally:
                made.close()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "stage"), FAULTS, ids=[name for name, _ in FAULTS])
def test_results_are_those_of_the_undisturbed_run(project: Project, name: str, stage: Stage) -> None:
    assert first_that_strikes(project, INJECTIONS[name], stage, seed=0).outcome == EQUAL

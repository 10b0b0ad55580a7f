"""A job that starts late, or again, where its stage is complete: it ends before anything is removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.tiny_run import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_a_job_that_starts_again_removes_nothing(start_project: Callable[..., Project]) -> None:
    """The very command that Slurm got runs a second time, as after a lost answer or on a node that came back."""
    project = start_project()
    ((number, state, _),) = project.complete(["base:gres='gpu:1'"])
    assert state == "COMPLETED"
    files = [file for file in (project.folder / "results/tiny/base").rglob("*") if file.is_file()]
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    said = project.log
    assert {file.name for file in files} >= {"model.pth", "stage.json"}

    cluster = project.cluster
    cluster.ask("scontrol", "requeue", number)
    wait_for(lambda: number in cluster.jobs("PENDING"), 60, "requeue")
    cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
    wait_for(lambda: number in cluster.jobs("RUNNING"), 60, "second start")
    wait_for(lambda: number not in cluster.jobs("RUNNING", "COMPLETING", "PENDING"), 200, "second end")

    assert project.jobs()[0][1] == "COMPLETED"
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files} == before
    assert project.log == said, "neither is the log of the stage"
    logs = "".join(file.read_text() for file in (project.folder / "logs/slurm").rglob(f"{number}.log"))
    assert "nothing is left to do" in logs, logs

"""A job that starts late, or again, where its stage is complete: it ends before anything is removed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.tiny_run import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_a_job_that_starts_again_removes_nothing(start_project: Callable[..., Project]) -> None:
    """The command that Slurm got runs a second time while its Snakemake is there; without it a job fails by itself."""
    project = start_project()
    cluster = project.cluster
    running = project.start(["base:gres='gpu:1'"])

    def state() -> tuple[str, ...]:
        """State of the job, and how often it was queued again."""
        number = next((number for number, _, _ in project.jobs()), "")
        shown = cluster.ask("scontrol", "show", "job", number) if number else ""
        return tuple(re.findall(r"\b(?:JobState|Restarts)=(\w+)", shown))

    wait_for(lambda: state() == ("RUNNING", "0"), 200, "first start")
    os.kill(running.pid, signal.SIGSTOP)  # it shall not see the first end
    try:
        wait_for(lambda: state() == ("COMPLETED", "0"), 300, "first end")
        files = [file for file in (project.folder / "results/tiny/base").rglob("*") if file.is_file()]
        before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
        said = project.log
        assert {file.name for file in files} >= {"model.pth", "stage.json"}
        ((number, _, _),) = project.jobs()
        cluster.ask("scontrol", "requeue", number)
        wait_for(lambda: state() == ("PENDING", "1"), 60, "requeue")
        cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
        wait_for(lambda: state() in (("COMPLETED", "1"), ("FAILED", "1")), 300, "second end")
        assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files} == before
    finally:
        os.kill(running.pid, signal.SIGCONT)
    output, _ = running.communicate(timeout=120)
    logs = "".join(file.read_text() for file in (project.folder / "logs/slurm").rglob(f"{number}.log"))
    assert "nothing is left to do" in logs, logs
    assert "steps (100%) done" in output, output[-4000:]
    assert project.log == said, "the log of the stage stays, too"

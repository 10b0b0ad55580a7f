"""A second job for a stage that is complete: it ends before anything is removed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.tiny_run import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_a_job_that_starts_again_removes_nothing(start_project: Callable[..., Project]) -> None:
    """The script that Slurm got is submitted once more, as after a lost answer, while its Snakemake is there."""
    project = start_project()
    cluster = project.cluster
    running = project.start(["base:gres='gpu:1'"])
    wait_for(lambda: [state for _, state, _ in project.jobs()] == ["RUNNING"], 200, "start of the job")
    os.kill(running.pid, signal.SIGSTOP)  # without Snakemake a job fails by itself
    try:
        wait_for(lambda: project.jobs()[0][1] == "COMPLETED", 300, "end of the job")
        files = [file for file in (project.folder / "results/tiny/base").rglob("*") if file.is_file()]
        before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
        said = project.log
        assert {file.name for file in files} >= {"model.pth", "stage.json"}
        script = cluster.ask("scontrol", "write", "batch_script", project.jobs()[0][0], "-")
        log = project.folder / "late.txt"
        command = ["sbatch", "--wait", "--partition=gpu", "--mem=4000", f"--output={log}"]
        late = subprocess.run(
            command, cwd=project.folder, env=project.environment, input=script, text=True, timeout=300
        )
        assert late.returncode == 0 and "nothing is left to do" in log.read_text(), log.read_text()
        assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files} == before
    finally:
        os.kill(running.pid, signal.SIGCONT)
    output, _ = running.communicate(timeout=120)
    assert "steps (100%) done" in output, output[-4000:]
    assert project.log == said, "the log of the stage stays, too"

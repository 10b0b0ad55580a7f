"""A node that Slurm gives up, whose training goes on: the next attempt makes the results, and they stay."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ltpipe.run.files import sha256_file
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.tiny_run import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
Start = Callable[..., Project]
ITERATIONS = 40
RESOURCES = ["base:gres='gpu:1'"]


def programs(cluster: Cluster) -> set[int]:
    """Processes in jobs of a cluster, without Slurm's own."""
    found = set()
    for process in cluster.job_processes():
        with suppress(OSError):
            if Path(f"/proc/{process}/comm").read_text().strip() not in ("slurmstepd", "srun"):
                found.add(process)
    return found


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files."""
    return {str(file.relative_to(folder)): sha256_file(file) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("requeue", [False, True], ids=["retried", "requeued"])
def test_a_lost_training_changes_nothing(start_project: Start, requeue: bool) -> None:
    project = start_project(iterations=ITERATIONS)
    cluster, folder = project.cluster, project.folder / "results/tiny/base"
    running = project.start(RESOURCES, *([] if requeue else ["--ltslurm-no-requeue"]))
    wait_for(lambda: len(list(folder.glob("work/iter_*.pth"))) > 1, 200, "two states")
    lost = int(json.loads((folder / ".lock").read_text())["pid"])
    ((number, _, node),) = project.jobs()
    os.kill(lost, signal.SIGSTOP)  # as a process whose file server does not answer
    cluster.kill(node)
    try:
        if requeue:
            wait_for(lambda: number in cluster.jobs("PENDING"), 120, "requeue")
            cluster.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
        output, _ = running.communicate(timeout=500)
        assert running.returncode == 0, output[-4000:] + project.log
        assert lost in programs(cluster), "the lost process outlived its job"
        before = contents(folder)
    finally:
        os.kill(lost, signal.SIGCONT)
    states = {number: (state, where) for number, state, where in project.jobs()}
    assert len(states) == (1 if requeue else 2)
    assert states[number][0] == ("COMPLETED" if requeue else "NODE_FAIL")
    assert f"pid {lost}, Slurm job {number}" in project.log and "continuing from" in project.log, project.log
    wait_for(lambda: not programs(cluster), 120, "end of the lost training and of the Snakemake around it")
    assert contents(folder) == before
    outputs = project.record["outputs"]
    assert isinstance(outputs, dict) and {name: before[name] for name in outputs} == outputs

"""One training in several processes through Slurm: on one node, on two nodes, and stopped on two nodes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.tiny_run import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
Start = Callable[..., Project]
ONE_NODE = ["base:gres='gpu:2'"]
# What docs/cluster.md says about several nodes.
TWO_NODES = ["base:nodes=2", "base:gres='gpu:1'", "base:mpi='srun'", "base:tasks=2", "base:tasks_per_gpu=0"]


def test_two_processes_on_one_node(start_project: Start) -> None:
    project = start_project(processes=2)
    ((_, state, nodes),) = project.complete(ONE_NODE)
    assert state == "COMPLETED" and re.fullmatch(r"node\d", nodes)
    assert project.record["processes"] == 2


def test_two_nodes(start_project: Start) -> None:
    project = start_project(processes=2)
    ((number, state, nodes),) = project.complete(TWO_NODES)
    assert state == "COMPLETED" and nodes == "node[1-2]"
    assert project.record["processes"] == 4
    for node in ("node1", "node2"):
        said = (project.cluster.folder / "log" / f"slurmd.{node}.log").read_text()
        assert f"launch task StepId={number}.0 request" in said, "the step runs on both nodes"
    assert not list((project.folder / "results/tiny/base").glob(".*failed*"))


def test_two_nodes_are_stopped_and_continue(start_project: Start) -> None:
    project = start_project(iterations=60)
    running = project.start(TWO_NODES)
    wait_for(lambda: "Iter(train)" in project.log, 200, "first iterations")
    project.cluster.ask("scancel", project.jobs()[0][0])
    output, _ = running.communicate(timeout=500)
    assert running.returncode == 0, output[-4000:] + project.log
    assert [state for _, state, _ in project.jobs()] == ["CANCELLED", "COMPLETED"]
    stopped = re.search(r"asked to stop after iteration (\d+) of 60", output)
    assert stopped is not None, output[-4000:]
    assert f"iter_{stopped[1]}.pth" in project.log, project.log
    assert project.record["processes"] == 2


def test_passes_over_images_on_two_nodes(start_project: Start) -> None:
    """What the profile says of ``distill``, ``features`` and ``evaluate`` may be several nodes, too."""
    project = start_project()
    stages = ("distill", "features", "evaluate")
    asked = [resource.replace("base", stage, 1) for stage in stages for resource in TWO_NODES]
    output, _ = project.start(asked, target="all").communicate(timeout=800)
    assert "steps (100%) done" in output, output[-4000:]
    for record in (project.folder / "results/tiny").rglob("stage.json"):
        content = project.record_of(str(record.parent.relative_to(project.folder / "results/tiny")))
        assert content.get("processes", 1) == (2 if content["stage"] in stages else 1), record

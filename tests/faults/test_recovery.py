"""The short version of the fault harness: one fault of every family. The long one is ``python -m tests.faults``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from driver import EQUAL, MISSED, Result, cases, first_that_strikes, table
from injections import INJECTIONS
from project import Project, Stage

FAULTS = [
    ("stage killed", Stage("base", None)),
    ("Snakemake killed, stage goes on", Stage("lst", 1)),
    ("Snakemake and stage killed", Stage("distill", 2)),
    ("file size limit", Stage("split", None)),
    ("truncated input", Stage("calibrate", "simcal")),
    ("two Snakemakes at once", Stage("evaluate", "phase2")),
    ("interrupted with Ctrl-C", Stage("lst", 2)),
    ("loader process killed", Stage("base", None)),
    ("loader process killed", Stage("evaluate", "phase2")),
    ("loader process of a child of torchrun killed", Stage("base", None)),
    ("all processes terminated", Stage("lst", 1)),
    ("all processes of torchrun terminated", Stage("lst", 2)),
]
pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The tiny project and its undisturbed run."""
    made = Project(tmp_path_factory.mktemp("faults") / "tiny")
    try:
        made.run_undisturbed(1)
        made.run_undisturbed(2)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("name", "stage"), FAULTS, ids=[f"{name}, {stage.name}" for name, stage in FAULTS])
def test_results_are_those_of_the_undisturbed_run(project: Project, name: str, stage: Stage) -> None:
    assert first_that_strikes(project, INJECTIONS[name], stage, seed=0).outcome == EQUAL


def test_another_result_is_noticed(project: Project) -> None:
    """The comparison itself: a changed file, a missing and a surplus one."""
    project.restore()
    project.paths.metrics("phase2").write_text("{}")
    project.paths.summary.unlink()
    (project.paths.folder("base") / "work").mkdir()
    (project.paths.folder("base") / "work" / "iter_4.pth").touch()
    found, expected = project.checksums(), project.finished[1]
    wrong = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
    assert wrong == {
        f"results/tiny/{name}"
        for name in ("evaluate/phase2/metrics.json", "report/summary.csv", "base/work/iter_4.pth")
    }


def test_every_kind_meets_every_stage_it_can(project: Project) -> None:
    drawn = cases(project, list(INJECTIONS.values()), seed=3)
    pairs = {(one.name, stage) for one, stage in (next(drawn) for _ in range(len(INJECTIONS) * len(project.stages)))}
    assert pairs == {(one.name, stage) for one in INJECTIONS.values() for stage in project.stages if one.stages(stage)}


def test_table() -> None:
    base, lst = Stage("base", None), Stage("lst", 2)
    outcomes = [("stage killed", base, EQUAL), ("stage killed", base, "bad"), ("stage killed", lst, MISSED)]
    outcomes.append(("disk full", lst, EQUAL))
    results = [Result(i, name, stage, outcome, 1.0) for i, (name, stage, outcome) in enumerate(outcomes)]
    assert table(results).splitlines() == [
        "| fault | base | lst | all |",
        "| --- | --- | --- | --- |",
        "| stage killed | 1/2 |  | 1/2 |",
        "| disk full |  | 1/1 | 1/1 |",
        "| all | 1/2 | 1/1 | 2/3 |",
    ]

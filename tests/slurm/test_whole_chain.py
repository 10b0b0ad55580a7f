"""What users do every day, on a real Slurm: the whole chain with real stages, one phase, a phase again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.slurm.tiny_run import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
TRAININGS = ["base", "lst_phase_1", "lst_phase_2"]
# The profile asks for one GPU: that its two processes run on one node is said here.
TWO_GPUS = [f"{rule}:gres='gpu:2'" for rule in TRAININGS]
FROM_PHASE_2 = ["lst_phase_2", "evaluate", "evaluate", "features", "calibrate", "report"]


@pytest.mark.parametrize("accounting", [False, True], ids=["squeue-only", "slurmdbd"])
def test_the_whole_chain(start_project: Callable[..., Project], accounting: bool) -> None:
    project = start_project(processes=2, accounting=accounting)

    def run(target: str, *options: str) -> list[str]:
        """Rules of the jobs that Slurm has got."""
        last = max(project.rules(), default=0)
        output, _ = project.start(TWO_GPUS, *options, target=target).communicate(timeout=900)
        assert "(100%) done" in output or "Nothing to be done" in output, output[-4000:]
        return [rule for number, rule in project.rules().items() if number > last]

    until = run("phase_1")
    assert until[-1] == "lst_phase_1" and "lst_phase_2" not in until
    rest = run("all")
    assert set(until) & set(rest) <= {"evaluate"} and rest[-1] == "report"
    for stage in ("base", "lst/phase1", "lst/phase2"):
        assert project.record_of(stage)["processes"] == 2
    assert (project.folder / "results/tiny/report/report.html").is_file()
    assert run("all") == []
    first = project.record_of("lst/phase1")
    assert sorted(run("all", "-R", "lst_phase_2")) == sorted(FROM_PHASE_2)
    assert project.record_of("lst/phase1") == first

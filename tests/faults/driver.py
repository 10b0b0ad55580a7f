"""Draw faults, let them strike, and compare the results with those of the undisturbed run."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults import on_slurm  # noqa: F401 - registers its injections
from tests.faults.injections import INJECTIONS, Case, Injection, Missed
from tests.faults.project import Project, Stage

# Share of faults after which the whole chain is asked for, and not the stage alone.
WHOLE = 0.1
EQUAL = "equal"
MISSED = "missed"


@dataclass(frozen=True)
class Result:
    """What became of one fault.

    Attributes:
        number: Its number; with the seed it decides everything else.
        injection: Name of the injection.
        stage: Stage that was struck.
        outcome: ``equal`` when the results are those of the undisturbed run, ``missed`` when nothing happened, else
            what is wrong.
        seconds: Time it took.
    """

    number: int
    injection: str
    stage: Stage
    outcome: str
    seconds: float


def kinds(names: Sequence[str] = (), *, slurm: bool = False) -> list[Injection]:
    """Injections of these names, or all for this place: a cluster or not; file systems need root."""
    if names:
        return [INJECTIONS[name] for name in names]
    here = [one for one in INJECTIONS.values() if (one.partition is not None) == slurm]
    return [one for one in here if not one.disk or os.geteuid() == 0]


def cases(project: Project, injections: Sequence[Injection], seed: int) -> Iterator[tuple[Injection, Stage]]:
    """Injections in turn, each with another of its stages in random order, without end."""
    random = np.random.default_rng(seed)
    stages = {
        one.name: random.permutation([i for i, s in enumerate(project.stages) if one.stages(s)]) for one in injections
    }
    for turn in itertools.count():
        for one in injections:
            own = stages[one.name]
            yield one, project.stages[own[turn % len(own)]]


def run_fault(project: Project, injection: Injection, stage: Stage, seed: int, number: int) -> Result:
    """Let one fault strike a stage of the finished project and compare what comes out."""
    started = time.monotonic()
    random = np.random.default_rng([seed, number])
    project.restore(injection.processes, disk=injection.disk)
    if injection.partition is not None:
        project.submit_to(injection.partition)
    whole = random.random() < WHOLE
    targets = ("all",) if whole else (project.target(stage),)
    # Snakemake does not make a missing file again while all that follows from it is there.
    for gone in project.stages[project.stages.index(stage) :] if whole else [stage]:
        project.delete(gone)
    case = Case(project, stage, random, targets, injection.processes, project.folder / "fired")
    try:
        injection.strike(case)
        outcome = difference(project, injection.processes)
    except Missed:
        outcome = MISSED
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    project.end_leftovers()
    return Result(number, injection.name, stage, outcome, time.monotonic() - started)


def first_that_strikes(project: Project, injection: Injection, stage: Stage, seed: int, most: int = 10) -> Result:
    """Repeat a fault with other numbers until it strikes; the last one of ``most`` may have missed, too."""
    for number in range(most):
        result = run_fault(project, injection, stage, seed, number)
        if result.outcome != MISSED:
            break
    return result


def difference(project: Project, processes: int) -> str:
    """How the results differ from the undisturbed ones."""
    expected, found = project.finished[processes], project.checksums()
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    return EQUAL if not wrong else f"{len(wrong)} files differ: {', '.join(wrong[:5])}"


def run_faults(
    projects: Sequence[Project],
    faults: int,
    seed: int,
    names: Sequence[str] = (),
    report: Callable[[Result], None] = lambda result: None,
    seconds: float = float("inf"),
) -> list[Result]:
    """Let a number of faults strike, or as many as fit into the time; missed ones do not count.

    Args:
        projects: New projects, which are used side by side.
        faults: Faults.
        seed: Seed of all choices.
        names: Kinds of faults, all by default.
        report: Called after every fault.
        seconds: Time for all of them.
    """
    first, *others = projects
    chosen = kinds(names, slurm=first.cluster is not None)
    for processes in sorted({one.processes for one in chosen} | {1}):
        first.run_undisturbed(processes)
    for other in others:
        other.adopt(first)
    end = time.monotonic() + seconds
    results: list[Result] = []
    drawn, lock = enumerate(cases(first, chosen, seed)), threading.Lock()

    def work(project: Project) -> None:
        while sum(result.outcome != MISSED for result in results) < faults and time.monotonic() < end:
            with lock:
                number, (one, stage) = next(drawn)
            results.append(run_fault(project, one, stage, seed, number))
            report(results[-1])

    with ThreadPoolExecutor(len(projects)) as pool:
        list(pool.map(work, projects))
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown table: injections by stages, each cell ``equal/struck``."""
    struck = [result for result in results if result.outcome != MISSED]
    names = list(dict.fromkeys(name for name in INJECTIONS if any(result.injection == name for result in struck)))
    stages = list(dict.fromkeys(stage for stage in ORDER if any(result.stage.name == stage for result in struck)))
    count = Counter((result.injection, result.stage.name) for result in struck)
    good = Counter((result.injection, result.stage.name) for result in struck if result.outcome == EQUAL)
    lines = [f"| fault | {' | '.join(stages)} | all |", f"| --- |{' --- |' * (len(stages) + 1)}"]
    for name in [*names, "all"]:
        rows = names if name == "all" else [name]
        cells = []
        for stage in [*stages, "all"]:
            keys = [(row, column) for row in rows for column in (stages if stage == "all" else [stage])]
            total = sum(count[key] for key in keys)
            cells.append(f"{sum(good[key] for key in keys)}/{total}" if total else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


ORDER = ("validate", "index", "split", "base", "distill", "lst", "features", "calibrate", "evaluate", "report")


def write_table(path: Path, results: Sequence[Result], command: str, state: str) -> None:
    """Write the table and every fault that was not recovered from.

    Args:
        path: Markdown file.
        results: What became of the faults.
        command: The command that made them.
        state: The code's state.
    """
    struck = [result for result in results if result.outcome != MISSED]
    bad = [result for result in struck if result.outcome != EQUAL]
    text = [
        "# Faults",
        "",
        "Each fault strikes one stage of a finished tiny project whose results of that stage were removed: at a random",
        "moment while it runs, or in what it reads. Then the user's command is repeated, and all files of `results`",
        "are compared with those of an undisturbed run by their SHA-256, records without their times.",
        "",
        f"`{command}`, code {state}:",
        f"{len(struck)} faults struck, after {len(struck) - len(bad)} of them all results were equal.",
        f"{len(results) - len(struck)} more came after the end of their stage and do not count. Cells: equal / struck.",
        "",
        table(results),
        "",
        *(f"- {one.injection}, {one.stage.line} (fault {one.number}): {one.outcome.splitlines()[0]}" for one in bad),
    ]
    path.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")

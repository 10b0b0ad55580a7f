"""What can happen to a stage on any machine; :mod:`on_slurm` has what happens on a cluster.

Each injection strikes, repeats the user's command, and leaves the rest to the driver. A new one is a function under
:func:`injection`; it may use everything of :class:`Case`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltpipe.run.cores import VARIABLE
from tests.faults.project import MORE_CORES, Command, Project, Stage

DAY = 86400.0


class Missed(Exception):
    """The moment came after the end of the stage: no fault."""


@dataclass(frozen=True)
class Case:
    """One fault to be.

    Attributes:
        project: The project, in its finished state but for the outputs of the stage.
        stage: The stage that is struck.
        random: Generator for every choice.
        targets: What the user asks for: the stage's record, or everything.
        processes: Of the trainings.
        fired: File that is written when the fault strikes inside a stage.
    """

    project: Project
    stage: Stage
    random: np.random.Generator
    targets: tuple[str, ...]
    processes: int
    fired: Path

    def start(self, action: str | None = None, *, name: str = "first", moments: str = "file cpu") -> Command:
        """Start the user's command; with an action something happens at a drawn moment of the stage."""
        environment = {"PROCESSES": str(self.processes), VARIABLE: MORE_CORES}
        if action is not None:
            self.fired.unlink(missing_ok=True)
            events, seconds = self.project.costs[self.stage.line.replace("/", "_")]
            moment = self.random.choice(moments.split())
            number = {
                "file": self.random.integers(1, events + 1),
                "cpu": self.random.uniform(0.01, 0.9 * seconds),
                "batch": self.random.integers(2),  # every training has at least three
            }[moment]
            environment |= {"FAULT": f"{moment} {number} {action}", "FAULT_STAGE": self.stage.line}
            environment["FAULT_FIRED"] = str(self.fired)
            if self.processes > 1:
                environment["FAULT_RANK"] = str(self.random.integers(self.processes))
        return self.project.snakemake(*self.targets, name=name, **environment)

    def strike(self, action: str, **options: str) -> Command:
        """Run the user's command with a fault; return it when it has ended.

        Raises:
            Missed: The stage ended before the moment came.
        """
        command = self.start(action, **options)
        self.ended(command)
        return command

    def ended(self, command: Command) -> int:
        """Wait for a command in which a fault should have struck; return its exit code.

        Raises:
            Missed: The stage ended before the moment came.
        """
        code = command.wait()
        if not self.fired.exists():
            assert code == 0, f"ended with {code} before the fault:\n{tail(command.text())}"
            raise Missed
        return code

    def again(self) -> None:
        """Run the user's command once more; it must succeed."""
        command = self.start(name="again")
        code = command.wait()
        assert code == 0, f"the repeated command ended with {code}:\n{tail(command.text())}"

    def damaged_file(self, files: list[Path]) -> Path:
        """Cut one of the files short, by any number of bytes; return it."""
        file = files[self.random.integers(len(files))]
        os.truncate(file, int(self.random.integers(file.stat().st_size)))
        return file


def clear_error(command: Command) -> str:
    """What a failed command has printed, which must show an error of ltpipe."""
    text = command.text()
    assert re.search(r"^\s*ltpipe [a-z-]+: ", text, re.MULTILINE) and "Traceback" not in text, f"unclear:\n{tail(text)}"
    return text


@dataclass(frozen=True)
class Injection:
    """A kind of fault.

    Attributes:
        name: In the table.
        strike: Does it, and repeats the user's command.
        stages: Whether a stage can be struck.
        processes: Of the trainings.
        disk: Whether the results lie on a file system of their own, which needs root.
        partition: Where the jobs go on Slurm; None for faults that need no Slurm.
    """

    name: str
    strike: Callable[[Case], None]
    stages: Callable[[Stage], bool]
    processes: int = 1
    disk: bool = False
    partition: str | None = None


INJECTIONS: dict[str, Injection] = {}


def injection(
    name: str, *, stages: Callable[[Stage], bool] = lambda stage: True, **options: Any
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function as an injection; arguments as of :class:`Injection`."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        INJECTIONS[name] = Injection(name, function, stages, **options)
        return function

    return register


def tail(text: str) -> str:
    """The end of an output."""
    return "\n".join(text.splitlines()[-25:])


# ---- processes that end ----------------------------------------------------------------------------------------------


@injection("stage killed")
def stage_killed(case: Case) -> None:
    case.strike("kill")
    case.again()


@injection("stage terminated")
def stage_terminated(case: Case) -> None:
    case.strike("terminate")
    case.again()


@injection("Snakemake killed, stage goes on")
def snakemake_killed(case: Case) -> None:
    case.strike("kill_snakemake")
    case.again()


@injection("Snakemake and stage killed")
def everything_killed(case: Case) -> None:
    case.strike("kill_both")
    case.again()


@injection("interrupted with Ctrl-C")
def interrupted(case: Case) -> None:
    case.strike("interrupt")
    case.again()


@injection("killed twice")
def killed_twice(case: Case) -> None:
    case.strike("kill_both")
    with suppress(Missed):
        case.strike("kill_both")
    case.again()


@injection("child of torchrun killed", stages=lambda stage: stage.training, processes=2)
def child_killed(case: Case) -> None:
    command = case.strike("kill", moments="cpu")
    assert "a process of this stage was killed" in clear_error(command), tail(command.text())
    case.again()


def loads(stage: Stage) -> bool:
    """Whether a stage has loader processes."""
    return stage.training or stage.name == "evaluate"


@injection("loader process killed", stages=loads)
def loader_killed(case: Case) -> None:
    command = case.strike("kill_loader", moments="batch")
    text = clear_error(command)
    assert "a loader process was killed" in text and "SIGKILL" in text and "LTPIPE_CORES" in text, tail(text)
    case.again()


@injection("loader process of a child of torchrun killed", stages=lambda stage: stage.training, processes=2)
def loader_of_a_child_killed(case: Case) -> None:
    command = case.strike("kill_loader", moments="batch")
    assert clear_error(command).count("a loader process was killed") == 1, tail(command.text())
    case.again()


def terminated_as_group(case: Case) -> None:
    """As ``scancel`` does: SIGTERM for all processes of the stage."""
    command = case.strike("terminate_group", moments="batch")
    assert "asked to stop after iteration" in clear_error(command), tail(command.text())
    case.again()


injection("all processes terminated", stages=lambda stage: stage.training)(terminated_as_group)
injection("all processes of torchrun terminated", stages=lambda stage: stage.training, processes=2)(terminated_as_group)


# ---- disks -----------------------------------------------------------------------------------------------------------


@injection("disk full", disk=True)
def disk_full(case: Case) -> None:
    command = case.start("full")
    if case.ended(command):
        clear_error(command)
    case.project.remount("size=200m")
    case.again()


@injection("file size limit")
def file_limit(case: Case) -> None:
    """The log cannot grow either: the error may be missing from it."""
    command = case.strike("limit")
    assert "Traceback" not in command.text(), tail(command.text())
    case.again()


@injection("results read-only", disk=True)
def read_only(case: Case) -> None:
    case.project.remount("ro")
    command = case.start()
    assert command.wait() != 0, "nothing can be written"
    case.project.remount("rw")
    case.again()


# ---- damaged files ---------------------------------------------------------------------------------------------------


def has_inputs(stage: Stage) -> bool:
    """Whether a stage reads what another one wrote."""
    return stage.name not in ("validate", "index")


@injection("truncated input", stages=has_inputs)
def truncated_input(case: Case) -> None:
    """The stage refuses it and says which command makes it again."""
    damaged = case.damaged_file(case.project.inputs(case.stage))
    command = case.start()
    assert command.wait() != 0, f"{damaged} is damaged"
    text = clear_error(command)
    assert str(damaged.relative_to(case.project.folder)) in text, f"{damaged} is not named:\n{tail(text)}"
    advice = re.search(r"run `ltpipe ([^`]+)`", text)
    assert advice is not None, f"no advice:\n{tail(text)}"
    by_hand = case.project.ltpipe(advice[1])
    assert by_hand.wait() == 0, f"`ltpipe {advice[1]}` failed:\n{tail(by_hand.text())}"
    case.again()


@injection(
    "truncated resume state",
    stages=lambda stage: stage.training or stage.name in ("distill", "features", "calibrate", "evaluate"),
)
def truncated_state(case: Case) -> None:
    case.strike("kill_both")
    folder = case.project.paths.work(case.stage.name, case.stage.key)
    files = [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size] if folder.is_dir() else []
    if not files:
        raise Missed
    case.damaged_file(sorted(files))
    case.again()


# ---- others at work, and clocks --------------------------------------------------------------------------------------


def stopped(case: Case) -> tuple[Command, int, str]:
    """Start the user's command; return it, the process of the stage, which stands still at some moment, and its job."""
    command = case.start("stop")
    end = time.monotonic() + 300
    while not (case.fired.exists() and case.fired.read_text()):
        if "steps (100%) done" in command.text():
            raise Missed
        assert time.monotonic() < end, f"neither struck nor ended:\n{tail(command.text())}"
        time.sleep(0.05)
    pid, _, job = case.fired.read_text().partition(" ")
    return command, int(pid), job


@injection("two Snakemakes at once")
def two_snakemakes(case: Case) -> None:
    first, pid, _ = stopped(case)
    try:
        second = case.start(name="second")
        code = second.wait()
        text = second.text()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code != 0 and "lock" in text.lower(), f"the second one ended with {code}:\n{tail(text)}"
    assert first.wait() == 0, f"the first one was disturbed:\n{tail(first.text())}"
    case.again()


@injection("the same stage by hand at once")
def by_hand_at_once(case: Case) -> None:
    first, pid, _ = stopped(case)
    try:
        second = case.project.ltpipe(case.stage.line)
        time.sleep(float(case.random.uniform(0, 1)))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert first.wait() == 0, f"Snakemake was disturbed:\n{tail(first.text())}"
    assert second.wait() == 0, f"the second one failed:\n{tail(second.text())}"
    case.again()


def shift_times(case: Case, seconds: float) -> None:
    """Move the times of all results that are there."""
    for file in (case.project.folder / "results").rglob("*"):
        stat = file.stat()
        os.utime(file, (stat.st_atime + seconds, stat.st_mtime + seconds))


@injection("clock was ahead")
def clock_ahead(case: Case) -> None:
    """All results that are there were made tomorrow."""
    shift_times(case, DAY)
    case.again()


@injection("clock was behind")
def clock_behind(case: Case) -> None:
    """All results that are there were made long ago."""
    shift_times(case, -365 * DAY)
    case.again()


@injection("logs and Snakemake's notes lost")
def notes_lost(case: Case) -> None:
    case.strike("kill_both")
    for name in (".snakemake", "logs"):
        shutil.rmtree(case.project.folder / name)
    case.again()

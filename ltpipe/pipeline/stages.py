"""The table of stages: command line, paths, sharing, targets and status ask it what a stage is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """What tells the runs of one stage apart, and its option on the command line.

    Attributes:
        flag: The option.
        name: Argument of the stage's ``run``.
        kind: Type of its values: phases are numbers, calibrators and checkpoints names.
        help: What it means.
        required: Whether the stage by hand needs it.
    """

    flag: str
    name: str
    kind: type[int] | type[str]
    help: str
    required: bool = True


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Name of the rule, the command, the folder and the module in ``ltpipe/stages``.
        help: What it does, for ``--help``.
        key: What tells its runs apart; None: there is one per experiment.
        processes: Whether it may run in several processes.
        resumes: Whether a killed run continues where it stopped.
        torch: Whether it needs torch.
        shared: Whether its results depend on nothing but its part of the experiment and what earlier shared stages have
            made, so that experiments which begin alike can share them.
    """

    name: str
    help: str
    key: Key | None = None
    processes: bool = False
    resumes: bool = False
    torch: bool = True
    shared: bool = False


_PHASE = Key("--phase", "phase", int, "phase, from 1")
_REPLAY = Key(
    "--phase", "phase", int, "0: class order and phases only, k: replay list of phase k; default: everything", False
)
_CALIBRATOR = Key("--name", "name", str, "name of the calibrator in the experiment")
CHECKPOINT = Key("--checkpoint", "checkpoint", str, "base, phase1 .., or a calibrator's name")

TABLE = {
    stage.name: stage
    for stage in (
        Stage("validate", "check an experiment and its detector in seconds, and write what it resolves to"),
        Stage("index", "annotations to columnar stores and class statistics, once per data set", torch=False),
        Stage("split", "class order, base and phases, replay lists", _REPLAY, torch=False, shared=True),
        Stage("base", "base training", processes=True, resumes=True, shared=True),
        Stage("distill", "teacher similarities for one incremental phase", _PHASE, resumes=True, shared=True),
        Stage("lst", "one incremental phase", _PHASE, processes=True, resumes=True, shared=True),
        Stage("features", "calibration plan and frozen RoI features", resumes=True, shared=True),
        Stage("calibrate", "train or compute one calibrator", _CALIBRATOR, resumes=True),
        Stage("evaluate", "measure one checkpoint", CHECKPOINT, resumes=True),
        Stage("report", "tables and plots", torch=False),
    )
}
"""Every stage by name, in the order they run. A new one is an entry, a module in ``ltpipe/stages`` and a rule."""

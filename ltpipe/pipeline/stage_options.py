"""What tells the runs of a stage apart on the command line: phase, calibrator, checkpoint, test set."""

from __future__ import annotations

from dataclasses import replace

from ltpipe.checkpoint_ids import measurement_of
from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.stage import Option


def phases(exp: Experiment) -> range:
    """Phases of an experiment, from 1."""
    return range(1, exp.num_phases() + 1)


def phases_with_cached_teacher(exp: Experiment) -> range:
    """Phases whose teacher's scores are stored before they are trained."""
    return phases(exp) if exp.lst is not None and exp.lst.distill.teacher == "cached" else range(0)


PHASE = Option("--phase", "phase", "phase", int, "phase, from 1", phases)
REPLAY = Option(
    "--phase",
    "phase",
    "phase",
    int,
    "0: class order and phases only, k: replay list of phase k; default: everything",
    lambda exp: range(exp.num_phases() + 1),
    required=False,
)
CALIBRATOR = Option(
    "--name", "name", "calibrator", str, "name of the calibrator in the experiment", lambda exp: list(exp.calibrate)
)
CHECKPOINT = Option(
    "--checkpoint",
    "checkpoint",
    "checkpoint",
    str,
    "base, phase1 .., or a calibrator's name",
    lambda exp: exp.checkpoints(),
)
MEASUREMENT = replace(
    CHECKPOINT,
    help=f"{CHECKPOINT.help}; NAME@SET: on a further test set",
    allowed=lambda exp: [
        measurement_of(one, part) for part in ("val", *exp.evaluate.sets) for one in exp.checkpoints()
    ],
)
TEST_SET = Option(
    "--set",
    "test_set",
    "test_set",
    str,
    "further test set; default: everything",
    lambda exp: list(exp.evaluate.sets),
    required=False,
)

"""Checkpoints from outside: those a training starts from, and finished ones that stand instead of a training."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config import catalogue
from ltpipe.config.experiment import Experiment
from ltpipe.config.start_weights import starting_experiment
from ltpipe.errors import UserError


def given_checkpoints(exp: Experiment) -> dict[str, Path]:
    """Checkpoints from outside that an experiment reads, by key."""
    named = {"detector.load_from": exp.detector.load_from, "base.checkpoint": exp.base.checkpoint}
    named |= {f"calibrate.{name}.checkpoint": calibrator.checkpoint for name, calibrator in exp.calibrate.items()}
    return {key: path for key, path in named.items() if path is not None}


def check_given(exp: Experiment, *, data_missing: bool) -> list[str]:
    """Check that the checkpoints are there.

    Args:
        exp: The experiment.
        data_missing: The data are not there either, so this is not where it will run.

    Returns:
        Remarks.

    Raises:
        UserError: One is missing.
    """
    remarks = []
    made = starting_experiment(exp) is not None
    for key, path in given_checkpoints(exp).items():
        if path.is_file() or (made and key == "detector.load_from"):
            continue
        if not data_missing:
            fix = "put the checkpoint there, give another path, or null to train instead"
            raise UserError("missing checkpoint", where=f"{exp.file or exp.name}: {key}", got=path, fix=fix)
        remarks.append(f"the checkpoint that {key} names is not there yet: {path}")
    return remarks


def check_taken_over(exp: Experiment) -> None:
    """Check that what is taken over instead of a training can be.

    Raises:
        UserError: It cannot.
    """
    if exp.base.checkpoint is not None and exp.detector.load_from is not None:
        raise UserError(
            "the base is taken over as it is, so there is no training to start",
            where=f"{exp.file or exp.name}: detector.load_from",
            got=f"{exp.detector.load_from}, with base.checkpoint: {exp.base.checkpoint}",
            fix="leave out one of the two",
        )
    for name, calibrator in exp.calibrate.items():
        adds_head = catalogue.find("calibrator", calibrator.type).flags.get("fuses_scores", False)
        if calibrator.checkpoint is not None and not adds_head:
            raise UserError(
                "only a calibrator with a head of its own can be taken over",
                where=f"{exp.file or exp.name}: calibrate.{name}.checkpoint",
                got=f"{calibrator.type}",
                allowed="simcal",
                fix="a detector whose classifier is calibrated already is a base: give base.checkpoint",
            )

"""Checkpoints from outside: those a training starts from, and finished ones that stand instead of a training."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config import catalogue
from ltpipe.config.detector import ResolvedDetector, resolve_detector
from ltpipe.config.experiment import Experiment
from ltpipe.config.start_weights import starting_experiment
from ltpipe.config.weight_files import address, cached_file, named_weights
from ltpipe.errors import UserError


def external_checkpoints(exp: Experiment) -> dict[str, Path]:
    """Checkpoints from outside that an experiment reads, by key."""
    named = {"detector.load_from": exp.detector.start, "base.checkpoint": exp.base.checkpoint}
    named |= {f"calibrate.{name}.checkpoint": calibrator.checkpoint for name, calibrator in exp.calibrate.items()}
    return {key: path for key, path in named.items() if path is not None}


def check_external_checkpoints(exp: Experiment, *, data_missing: bool) -> list[str]:
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
    for key, path in external_checkpoints(exp).items():
        if key == "detector.load_from" and exp.detector.address is not None:
            if not path.is_file():
                remarks.append(
                    f"{path} is not there yet: the base training downloads {exp.detector.address}; "
                    "where trainings have no network, put it there before"
                )
            continue
        if path.is_file() or (made and key == "detector.load_from"):
            continue
        if not data_missing:
            fix = "put the checkpoint there, give another path, or null to train instead"
            raise UserError("missing checkpoint", where=exp.where(f"{key}"), got=path, fix=fix)
        remarks.append(f"the checkpoint that {key} names is not there yet: {path}")
    return remarks + _check_start_weights(exp, data_missing=data_missing)


def start_weights(exp: Experiment, detector: ResolvedDetector) -> dict[str, str | Path | None]:
    """Return what the detector file starts from: names with their addresses, see :func:`~.weight_files.address`.

    Raises:
        UserError: There is no such name, or it needs a package that is not installed.
    """
    if exp.base.checkpoint is not None and exp.lst is None:
        return {}
    where = _init_cfg(exp)
    return {name: address(name, where) for name in named_weights(detector.model)}


def _init_cfg(exp: Experiment) -> str:
    return exp.where(f"detector.config: {exp.detector.config}: init_cfg")


def _check_start_weights(exp: Experiment, *, data_missing: bool) -> list[str]:
    """Check that the files are there; return what will be downloaded, and from where."""
    remarks = []
    for name, found in start_weights(exp, resolve_detector(exp.detector.config)).items():
        if isinstance(found, str) and not (file := cached_file(found)).is_file():
            remarks.append(
                f"{name} is not on this machine: the first training downloads {found}; "
                f"where trainings have no network, put the file to {file} before"
            )
        elif isinstance(found, Path) and not found.is_file():
            if not data_missing:
                fix = "put the file there, or name another one"
                raise UserError("missing start weights", where=_init_cfg(exp), got=name, fix=fix)
            remarks.append(f"the start weights that {exp.detector.config} names are not there yet: {name}")
    return remarks


def check_finished_checkpoints(exp: Experiment) -> None:
    """Check that checkpoints which stand instead of a training can.

    Raises:
        UserError: It cannot.
    """
    if exp.base.checkpoint is not None and exp.detector.load_from is not None:
        raise UserError(
            "the base is used as it is, so there is no training to start",
            where=exp.where("detector.load_from"),
            got=f"{exp.detector.load_from}, with base.checkpoint: {exp.base.checkpoint}",
            fix="leave out one of the two",
        )
    for name, calibrator in exp.calibrate.items():
        adds_head = catalogue.find("calibrator", calibrator.type).flags.get("fuses_scores", False)
        if calibrator.checkpoint is not None and not adds_head:
            raise UserError(
                "only a calibrator with a head of its own can be used as trained elsewhere",
                where=exp.where(f"calibrate.{name}.checkpoint"),
                got=f"{calibrator.type}",
                allowed="simcal",
                fix="a detector whose classifier is calibrated already is a base: give base.checkpoint",
            )

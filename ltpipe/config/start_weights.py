"""Trainings that start from the result of another experiment."""

from __future__ import annotations

from pathlib import Path

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import is_experiment, load_experiment
from ltpipe.errors import UserError, unknown_name
from ltpipe.pipeline.paths import RESULTS, Paths


def starting_experiment(exp: Experiment) -> Experiment | None:
    """Return the experiment whose checkpoint ``detector.load_from`` is, None if it is a file from elsewhere.

    Only ``results/<experiment>/...`` is recognised, with the name of a file in ``configs/experiments``.

    Raises:
        UserError: That experiment makes no such file, or is this one.
    """
    file = exp.detector.load_from
    if (
        not isinstance(file, Path)
        or len(file.parts) < 2
        or file.parts[0] != RESULTS
        or not is_experiment(file.parts[1])
    ):
        return None
    here = exp.where("detector.load_from")
    if file.parts[1] == exp.name:
        raise UserError("an experiment cannot start from its own result", where=here, got=file)
    found = load_experiment(file.parts[1])
    made = {str(Paths(RESULTS, found).model(name)): name for name in found.checkpoints()}
    if str(file) not in made:
        raise unknown_name("checkpoint", str(file), made, where=here)
    return found

"""Which stages an experiment has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ltpipe.config.catalogue import find
from ltpipe.config.experiment import Experiment


def stage_keys(exp: Experiment) -> Iterator[tuple[str, str | int | None]]:
    """All stages of an experiment with their keys, in the order they run."""
    yield from (("validate", None), ("index", None), ("split", None), ("base", None))
    for phase in range(1, exp.num_phases() + 1):
        yield "split", phase
        if exp.lst is not None and exp.lst.distill.teacher == "cached":
            yield "distill", phase
        yield "lst", phase
    if needs_features(exp):
        yield "features", None
    yield from (("calibrate", name) for name in exp.calibrate)
    yield from (("evaluate", checkpoint) for checkpoint in exp.evaluated_checkpoints())
    yield "report", None


def needs_features(exp: Experiment) -> bool:
    """Whether any calibrator is trained here on RoI features."""
    return any(is_trained_on_features(one.type, one.checkpoint) for one in exp.calibrate.values())


def is_trained_on_features(calibrator_type: str, checkpoint: Path | None) -> bool:
    """Whether a calibrator is trained here, on RoI features.

    Args:
        calibrator_type: Its type.
        checkpoint: The trained head that it takes over, if any.
    """
    return checkpoint is None and bool(find("calibrator", calibrator_type).flags.get("needs_features", True))

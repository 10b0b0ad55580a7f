"""Functions of ``import ltpipe`` about experiments, their results and their detectors.

Each imports what it needs when it is called; only :func:`load_detector` needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from ltpipe.config.experiment import Experiment
    from ltpipe.metrics.tensors import Tensors
    from ltpipe.stages.loaded_detector import LoadedDetector

PathLike = str | Path


def load_experiment(ref: PathLike) -> Experiment:
    """Load an experiment with its parents and all defaults, checked.

    Args:
        ref: Name of a file in ``configs/experiments``, or path of a YAML file.

    Returns:
        Typed blocks: ``exp.base.schedule.lr``, ``exp.checkpoints()``. It cannot be changed.

    Raises:
        UserError: Anything is wrong with the file: names file, line, key, value and what is allowed.
    """
    from ltpipe.config.loading import load_experiment as load

    return load(ref)


def _result(experiment: PathLike | Experiment, checkpoint: str, results: PathLike, file: str) -> Path:
    from ltpipe.config.experiment import Experiment
    from ltpipe.errors import UserError, unknown_name
    from ltpipe.pipeline.paths import Paths

    exp = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    if checkpoint not in exp.checkpoints():
        raise unknown_name("checkpoint", checkpoint, exp.checkpoints())
    paths = Paths(results, exp)
    found: Path = {"metrics": paths.metrics, "classes": paths.per_class, "tensors": paths.tensors}[file](checkpoint)
    if not found.is_file():
        fix = f"ltpipe evaluate {exp.name} --checkpoint {checkpoint}"
        raise UserError("not measured yet", where=found, got="no such file", fix=fix)
    return found


def read_metrics(
    experiment: PathLike | Experiment, checkpoint: str, *, results: PathLike = "results"
) -> dict[str, dict[str, Any]]:
    """Return the numbers of a measured checkpoint.

    Args:
        experiment: Name, file, or as of :func:`load_experiment`.
        checkpoint: ``base``, ``phase1``, ..., or the name of a calibrator.
        results: Folder of results.

    Returns:
        Content of ``metrics.json``: numbers by IoU type and name, fractions of 1.

    Raises:
        UserError: There is no such checkpoint, or it was not measured yet.
    """
    content: dict[str, dict[str, Any]] = json.loads(_result(experiment, checkpoint, results, "metrics").read_bytes())
    return content


def read_per_class(
    experiment: PathLike | Experiment, checkpoint: str, *, results: PathLike = "results"
) -> pd.DataFrame:
    """Return the numbers of every class of a measured checkpoint, for all IoU types (column ``iou_type``).

    Args:
        experiment: As of :func:`read_metrics`.
        checkpoint: Likewise.
        results: Folder of results.

    Returns:
        ``category_id``, ``name``, ``frequency``, ``train_images``, ``train_instances``, ``AP``, ...; NaN where a class
        has no objects to find.

    Raises:
        UserError: As :func:`read_metrics`.
    """
    from ltpipe.data.tables import read_csv

    return read_csv(_result(experiment, checkpoint, results, "classes"))


def read_tensors(
    experiment: PathLike | Experiment, checkpoint: str, *, results: PathLike = "results"
) -> dict[str, Tensors]:
    """Return precision and recall of a measured checkpoint, from which all AP follow.

    Args:
        experiment: As of :func:`read_metrics`.
        checkpoint: Likewise.
        results: Folder of results.

    Returns:
        By IoU type ``precision`` ``(T, R, K, A) float64`` and ``recall`` ``(T, K, A) float64`` over IoU thresholds,
        recall levels, classes (``category_ids``) and object sizes; -1 where a class has no objects of that size.

    Raises:
        UserError: As :func:`read_metrics`, or the file is damaged.
    """
    from ltpipe.metrics.tensors import load_tensors

    return load_tensors(_result(experiment, checkpoint, results, "tensors"))


def load_detector(named: PathLike, checkpoint: str | None = None, *, results: PathLike = "results") -> LoadedDetector:
    """Load a detector for inference, on a GPU if there is one; this is what imports torch.

    Args:
        named: An experiment, or a folder that ``ltpipe export`` wrote (its ``config.py`` is Python, and runs).
        checkpoint: Checkpoint of the experiment.
        results: Folder of results.

    Returns:
        A callable: ``detector(images, score=0.3)`` with files or ``(H, W, 3) uint8`` BGR arrays gives a table.

    Raises:
        UserError: There is no such detector.
    """
    from ltpipe.stages.loaded_detector import LoadedDetector

    return LoadedDetector.find(str(named), checkpoint, Path(results))

"""Which part of an experiment each stage reads, and a digest of it.

A stage reruns when its digest or one of its inputs changes. What has gone into its input files (the schedule of the
base, for a phase) is not repeated in its slice; whatever it reads of the experiment itself is there, also when an
earlier stage reads it too: that one may have left the same files as before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ltpipe.config.catalogue import plugin_digest
from ltpipe.config.detector import resolve_detector
from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.stages import stage_of


def stage_slice(exp: Experiment, stage: str, key: str | int | None = None) -> dict[str, Any]:
    """Return what a stage reads of its experiment, as plain values.

    Args:
        exp: The experiment.
        stage: One of :data:`~ltpipe.pipeline.stages.TABLE`.
        key: Its phase, calibrator or checkpoint.
    """
    whole = _relative(exp.model_dump(mode="json"))
    entry = stage_of(stage, key)
    found = entry.reads(exp, whole, key)
    code = set() if entry.plugin is None else {entry.plugin, entry.module}
    if "detector" in found:
        found["detector.resolved"] = _resolved(exp)
        code.update(exp.plugins)
    if code:
        found["plugins"] = {name: plugin_digest(name) for name in sorted(code)}
    return found


def toy_data_digest(exp: Experiment) -> str:
    """Digest of what ``ltpipe toy-data`` reads of an experiment."""
    return slice_digest({"dataset.generate": _relative(exp.model_dump(mode="json"))["dataset"]["generate"]})


def _resolved(exp: Experiment) -> Any:
    return as_json(resolve_detector(exp.detector.config).values())


def as_json(value: Any) -> Any:
    """Return a copy of values as JSON has them, without tuples, and with paths in the project relative to it."""
    return _relative(json.loads(json.dumps(value, default=str)))


def stage_seed(exp: Experiment, stage: str, key: str | int | None = None) -> int:
    """Return the seed of everything random in a stage; 0 where nothing is.

    Args:
        exp: The experiment.
        stage: A stage.
        key: As in :func:`stage_slice`.
    """
    return stage_of(stage, key).seed(exp, key)


def stage_digest(exp: Experiment, stage: str, key: str | int | None = None) -> str:
    """Digest of :func:`stage_slice`."""
    return slice_digest(stage_slice(exp, stage, key))


def slice_digest(part: Mapping[str, Any]) -> str:
    """SHA-256 of what :func:`stage_slice` returned, 16 hexadecimal digits."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _relative(value: Any, project: str | None = None) -> Any:
    """Return plain values with paths below the working directory relative to it: a project may be moved."""
    project = project or os.getcwd() + os.sep
    if isinstance(value, dict):
        return {_relative(key, project): _relative(item, project) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, project) for item in value]
    return value.removeprefix(project) if isinstance(value, str) else value

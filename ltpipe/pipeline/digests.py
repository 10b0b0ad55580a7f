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
from ltpipe.config.choices import extra_images
from ltpipe.config.detector import resolve_detector
from ltpipe.config.experiment import Experiment

# Replay lists (the stage `split` with a phase) hold as many epochs as the phases train.
_LENGTH = tuple(f"lst.schedule.{key}" for key in ("epochs", "iterations", "batch_size"))
# Dotted keys of the experiment by stage. `detector` stands for the block and for what the detector file resolves to.
# A leading minus leaves a key out again.
SLICES: Mapping[str, tuple[str, ...]] = {
    "toy_data": ("dataset.generate",),
    "index": ("dataset.format", "dataset.faults", "dataset.train", "dataset.val", "dataset.generate"),
    "split": ("split", "-split.ignore_future_gt"),
    "replay": ("lst.replay", *_LENGTH),
    "base": ("seed", "detector", "model", "split", "base"),
    "distill": ("detector", "lst.distill.teacher"),
    "lst": ("seed", "detector", "model", "split.ignore_future_gt", "lst", "-lst.replay", "-lst.iterations_per_phase"),
    "features": ("detector", "features"),
    "calibrate": ("features.storage", "features.dtype", "features.level"),
    "evaluate": ("evaluate", "-evaluate.checkpoints"),
    "report": ("name", "description", "report", "evaluate.checkpoints"),
}


def stage_slice(exp: Experiment, stage: str, key: str | int | None = None) -> dict[str, Any]:
    """Return what a stage reads of its experiment, as plain values.

    Args:
        exp: The experiment.
        stage: A stage, or ``toy_data``. ``validate`` reads everything.
        key: Phase number for ``lst`` and for the replay lists of ``split``, calibrator name for ``calibrate``,
            checkpoint for ``evaluate``.
    """
    whole = _relative(exp.model_dump(mode="json"))
    if stage == "validate":
        return {**whole, "detector.resolved": _resolved(exp)}
    if stage == "split" and key is not None:
        stage = "replay"
    found: dict[str, Any] = {name: _pick(whole, name) for name in SLICES[stage] if not name.startswith("-")}
    for name in SLICES[stage]:
        if name.startswith("-"):
            block, _, inner = name[1:].partition(".")
            if found[block] is not None:
                found[block] = {k: v for k, v in found[block].items() if k != inner}
    if "detector" in found:
        found["detector.resolved"] = _resolved(exp)
        if exp.plugins:
            found["plugins"] = {name: plugin_digest(name) for name in exp.plugins}
    if stage in ("lst", "replay"):
        assert exp.lst is not None and isinstance(key, int)
        steps = exp.lst.iterations_per_phase
        found["iterations"] = None if steps is None else steps[key - 1]
    if stage == "index" and exp.dataset.frequency_limits is not None:
        found["dataset.frequency_limits"] = whole["dataset"]["frequency_limits"]
    if stage in ("split", "replay") and extra_images(exp) == "holdout":
        found["holdout"] = True
    if stage == "evaluate" and key not in exp.calibrate:
        # Only calibrated checkpoints can have a second classifier.
        found[stage] = {k: v for k, v in found[stage].items() if k not in ("modes", "thresholds")}
    if stage == "calibrate":
        found["calibrator"] = whole["calibrate"][key]
        if found["calibrator"]["seed"] is None:
            found["seed"] = whole["seed"]
    return found


def _resolved(exp: Experiment) -> Any:
    """What the detector file resolves to, as JSON has it: without tuples."""
    return _relative(json.loads(json.dumps(resolve_detector(exp.detector.config).values(), default=str)))


def stage_seed(exp: Experiment, stage: str, key: str | int | None = None) -> int:
    """Return the seed of everything random in a stage; 0 where nothing is.

    Args:
        exp: The experiment.
        stage: A stage.
        key: As in :func:`stage_slice`.
    """
    seed = exp.seed
    if stage == "split" and key is not None:
        assert exp.lst is not None
        seed = exp.lst.replay.seed
    elif stage not in ("base", "lst", "features", "calibrate"):
        seed = 0
    elif stage == "lst":
        seed += int(key or 0)
    elif stage == "features":
        assert exp.features is not None
        seed = exp.features.seed
    elif stage == "calibrate" and (own := exp.calibrate[str(key)].seed) is not None:
        seed = own
    return seed


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


def _pick(values: Mapping[str, Any], dotted: str) -> Any:
    """Value at a dotted key; None below a block that is null."""
    current: Any = values
    for part in dotted.split("."):
        if current is None:
            return None
        current = current[part]
    return current

"""Which part of an experiment each stage reads, and a digest of it.

A stage reruns when its digest or one of its inputs changes. What a stage gets through its input files (the base model
in a phase, say) is not repeated in its slice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ltpipe.spec.catalogue import extra_images
from ltpipe.spec.detector import file_digests
from ltpipe.spec.models import Experiment

# Replay lists (the stage `split` with a phase) hold as many epochs as the phases train.
_LENGTH = tuple(f"lst.schedule.{key}" for key in ("epochs", "iterations", "batch_size"))
# Dotted keys of the experiment by stage. `detector` stands for the block and for the text of the detector file.
# A leading minus leaves a key out again.
SLICES: Mapping[str, tuple[str, ...]] = {
    "toy_data": ("dataset.generate",),
    "index": ("dataset.format", "dataset.faults", "dataset.train", "dataset.val"),
    "split": ("split", "-split.ignore_future_gt"),
    "replay": ("lst.replay", *_LENGTH),
    "base": ("seed", "detector", "model", "split", "base"),
    "distill": ("lst.distill.teacher",),
    "lst": ("lst", "-lst.replay", "-lst.iterations_per_phase"),
    "features": ("features",),
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
    whole = exp.model_dump(mode="json")
    if stage == "validate":
        return {**whole, "detector.file": file_digests(exp.detector.config)}
    if stage == "split" and key is not None:
        stage = "replay"
    found: dict[str, Any] = {name: _pick(whole, name) for name in SLICES[stage] if not name.startswith("-")}
    for name in SLICES[stage]:
        if name.startswith("-"):
            block, _, inner = name[1:].partition(".")
            if found[block] is not None:
                found[block] = {k: v for k, v in found[block].items() if k != inner}
    if "detector" in found:
        found["detector.file"] = file_digests(exp.detector.config)
    if stage in ("lst", "replay"):
        assert exp.lst is not None and isinstance(key, int)
        steps = exp.lst.iterations_per_phase
        found["iterations"] = None if steps is None else steps[key - 1]
    if stage == "split" and extra_images(exp) == "holdout":
        found["holdout"] = True
    if stage == "evaluate" and key not in exp.calibrate:
        # Only calibrated checkpoints can have a second classifier.
        found[stage] = {k: v for k, v in found[stage].items() if k not in ("modes", "thresholds")}
    if stage == "calibrate":
        found["calibrator"] = whole["calibrate"][key]
    return found


def stage_digest(exp: Experiment, stage: str, key: str | int | None = None) -> str:
    """Digest of :func:`stage_slice`."""
    return slice_digest(stage_slice(exp, stage, key))


def slice_digest(part: Mapping[str, Any]) -> str:
    """SHA-256 of what :func:`stage_slice` returned, 16 hexadecimal digits."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pick(values: Mapping[str, Any], dotted: str) -> Any:
    """Value at a dotted key; None below a block that is null."""
    current: Any = values
    for part in dotted.split("."):
        if current is None:
            return None
        current = current[part]
    return current

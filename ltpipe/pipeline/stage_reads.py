"""What stages read of the experiment, where it is more than a list of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltpipe.checkpoint_ids import measured_on
from ltpipe.config.blocks import Holdout
from ltpipe.config.choices import chooses_on, holds_out, swept_options
from ltpipe.config.experiment import Experiment
from ltpipe.pipeline.stage import Key, Reads, Slice, reading

LENGTH = tuple(f"lst.schedule.{key}" for key in ("epochs", "iterations", "batch_size"))
"""Replay lists (the stage ``split`` with a phase) hold as many epochs as the phases train."""


def with_holdout(reads: Reads) -> Reads:
    """Add whether images are held out of the training."""

    def read(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
        found = reads(exp, whole, key)
        if not holds_out(exp):
            return found
        return {**found, "holdout": True if exp.holdout == Holdout() else whole["holdout"]}

    return read


def with_iterations(reads: Reads) -> Reads:
    """Add the iterations of the phase, where the experiment gives them."""

    def read(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
        assert exp.lst is not None and isinstance(key, int)
        steps = exp.lst.iterations_per_phase
        return {**reads(exp, whole, key), "iterations": None if steps is None else steps[key - 1]}

    return read


def with_validation(reads: Reads, block: str) -> Reads:
    """Add what validation while training reads: it measures as ``evaluate`` does."""

    def read(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
        found = reads(exp, whole, key)
        if whole[block]["schedule"].get("validation") is None:
            return found
        kept = ("iou_types", "max_detections", "score_threshold", "nms")
        return {**found, "evaluate": {name: whole["evaluate"][name] for name in kept}}

    return read


def index_reads(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
    """What ``index`` reads."""
    parts = ("format", "faults", "train", "val", "generate")
    limits = () if exp.dataset.frequency_limits is None else ("frequency_limits",)
    return reading(*(f"dataset.{part}" for part in (*parts, *limits)))(exp, whole, key)


def set_reads(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
    """What ``index`` reads for a further test set."""
    data = (f"dataset.{name}" for name in ("format", "faults", "frequency_limits"))
    return reading(f"evaluate.sets.{key}", *data)(exp, whole, key)


def features_reads(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
    """What ``features`` reads."""
    found = reading("detector", "features")(exp, whole, key)
    return {**found, "without_holdout": True} if chooses_on(exp, "holdout") else found


def calibrate_reads(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
    """What ``calibrate`` reads."""
    found = reading("features.storage", "features.dtype", "features.level")(exp, whole, key)
    # What is not asked for leaves no trace, so that results made before it could be asked for stay.
    unset = [name for name in ("choose", "after") if whole["calibrate"][key][name] is None]
    calibrator = {name: value for name, value in whole["calibrate"][key].items() if name not in unset}
    if "choose" in calibrator:
        limits = ("evaluate.max_detections", "evaluate.score_threshold", "evaluate.nms", "evaluate.bins")
        found |= reading(*limits)(exp, whole, key) | {"swept": swept_options(exp.calibrate[str(key)])}
    return {**found, "calibrator": calibrator, **({"seed": whole["seed"]} if calibrator["seed"] is None else {})}


def evaluate_reads(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
    """What ``evaluate`` reads."""
    # Only calibrated checkpoints can have a second classifier.
    unread = () if measured_on(str(key))[0] in exp.calibrate else ("modes", "thresholds")
    return reading("evaluate", without={"evaluate": ("checkpoints", "sets", *unread)})(exp, whole, key)


def report_reads(exp: Experiment, whole: Mapping[str, Any], key: Key) -> Slice:
    """What ``report`` reads."""
    found = reading("name", "description", "report", "evaluate.checkpoints")(exp, whole, key)
    # What is not asked for leaves no trace.
    found |= {"evaluate.sets": list(exp.evaluate.sets)} if exp.evaluate.sets else {}
    return found | ({"seeds": list(exp.seeds)} if exp.seeds else {})

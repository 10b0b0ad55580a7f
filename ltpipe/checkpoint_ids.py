"""Names of checkpoints (``base``, ``phase1`` .., those of calibrators) and of their measurements (``base@minival``)."""

from __future__ import annotations

import re

_PHASE = re.compile(r"phase(\d+)")


def checkpoint_of(phase: int) -> str:
    """Return the name of what a phase has trained; phase 0 is the base training."""
    return f"phase{phase}" if phase else "base"


def phase_of(checkpoint: str) -> int | None:
    """Return the phase in which a checkpoint was trained, 0 for ``base``; None for a calibrator's."""
    match = _PHASE.fullmatch(checkpoint)
    return 0 if checkpoint == "base" else int(match[1]) if match else None


def measurement_of(checkpoint: str, part: str) -> str:
    """Return the name of a checkpoint's measurement on a part of the data; on ``val`` it is that of the checkpoint."""
    return checkpoint if part == "val" else f"{checkpoint}@{part}"


def measured_on(measurement: str) -> tuple[str, str]:
    """Return the checkpoint that is measured, and on which part of the data: ``val`` or another test set."""
    checkpoint, _, part = measurement.partition("@")
    return checkpoint, part or "val"

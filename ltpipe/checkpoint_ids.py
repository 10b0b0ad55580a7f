"""Names of checkpoints: ``base``, ``phase1``, ``phase2`` ..., and those of calibrators."""

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

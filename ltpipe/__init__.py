"""ltpipe: decoupled, multi-stage training of long-tailed instance segmenters and detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltpipe.stages.score import score as score

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load what notebooks call when they ask for it: ``import ltpipe`` alone loads nothing."""
    if name == "score":
        from ltpipe.stages.score import score

        return score
    raise AttributeError(f"module 'ltpipe' has no attribute {name!r}")

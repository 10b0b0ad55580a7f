"""ltpipe: decoupled, multi-stage training of long-tailed instance segmenters and detectors.

The public surface for notebooks and scripts is what :data:`__all__` names; ``import ltpipe`` alone loads nothing heavy,
each name loads what it needs when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltpipe.api import detections_table as detections_table
    from ltpipe.api import make_split as make_split
    from ltpipe.api import open_store as open_store
    from ltpipe.api import plot_class_curve as plot_class_curve
    from ltpipe.api import plot_group_bars as plot_group_bars
    from ltpipe.api import plot_long_tail as plot_long_tail
    from ltpipe.api import read_predictions as read_predictions
    from ltpipe.api import statistics as statistics
    from ltpipe.api import store_tables as store_tables
    from ltpipe.api import write_predictions as write_predictions
    from ltpipe.api_results import load_detector as load_detector
    from ltpipe.api_results import load_experiment as load_experiment
    from ltpipe.api_results import read_metrics as read_metrics
    from ltpipe.api_results import read_per_class as read_per_class
    from ltpipe.api_results import read_tensors as read_tensors
    from ltpipe.errors import UserError as UserError
    from ltpipe.stages.score import score as score

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "__version__",
    "detections_table",
    "load_detector",
    "load_experiment",
    "make_split",
    "open_store",
    "plot_class_curve",
    "plot_group_bars",
    "plot_long_tail",
    "read_metrics",
    "read_per_class",
    "read_predictions",
    "read_tensors",
    "score",
    "statistics",
    "store_tables",
    "write_predictions",
]

_ELSEWHERE = {
    "UserError": "ltpipe.errors",
    "load_detector": "ltpipe.api_results",
    "load_experiment": "ltpipe.api_results",
    "read_metrics": "ltpipe.api_results",
    "read_per_class": "ltpipe.api_results",
    "read_tensors": "ltpipe.api_results",
    "score": "ltpipe.stages.score",
}


def __getattr__(name: str) -> Any:
    """Load what notebooks call when they ask for it: ``import ltpipe`` alone loads nothing."""
    if name in __all__:
        module = importlib.import_module(_ELSEWHERE.get(name, "ltpipe.api"))
        return getattr(module, name)
    raise AttributeError(f"module 'ltpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion in notebooks."""
    return sorted(__all__)

"""ltpipe: decoupled, multi-stage training of long-tailed instance segmenters and detectors."""

__version__ = "0.1.0"

"""The faults of a cluster need the local Slurm of ``tests/slurm``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "slurm"))

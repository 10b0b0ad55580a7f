"""How long this process may run: what the user said, or what is left of its Slurm job. Standard library only."""

from __future__ import annotations

import os
import re
import time

from ltpipe.run.slurm import squeue

VARIABLE = "LTPIPE_DEADLINE"
STOPPED = 75
"""Exit code of a training that stopped before its time limit."""


class Stopped(Exception):
    """A stage saved its state and stopped on purpose; the same command continues."""


def set_deadline(minutes: float | None) -> None:
    """Note when the time is up, for this process and those it starts.

    Args:
        minutes: Minutes from now; by default those that are left of the Slurm job, if this is one.
    """
    if VARIABLE in os.environ:
        return
    seconds = slurm_seconds_left() if minutes is None else 60 * minutes
    if seconds is not None:
        os.environ[VARIABLE] = str(time.time() + seconds)


def seconds_left() -> float | None:
    """Seconds until the time is up; None without a limit."""
    deadline = os.environ.get(VARIABLE)
    return None if deadline is None else float(deadline) - time.time()


def slurm_seconds_left() -> float | None:
    """Ask Slurm how much time this job has left; None outside a job, without a limit, or without an answer."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    return parse_duration(squeue(job, "--format=%L") or "")


def parse_duration(text: str) -> float | None:
    """Seconds of Slurm's ``[days-][[hours:]minutes:]seconds``; None for ``UNLIMITED`` and the like."""
    if re.fullmatch(r"(\d+-)?(\d+:){0,2}\d+", text) is None:
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return float(86400 * int(days or 0) + seconds)

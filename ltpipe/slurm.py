"""What Slurm says about the job of this process, and about others. Standard library only."""

from __future__ import annotations

import os
import subprocess

_SECONDS = 30


def squeue(job: str, *options: str) -> str | None:
    """Ask ``squeue`` about one job.

    Args:
        job: Job id.
        *options: What to print.

    Returns:
        Its output without header; empty for a job that is over. None if Slurm does not answer.
    """
    command = ["squeue", "--noheader", f"--jobs={job}", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return done.stdout.strip()
    return "" if "Invalid job id" in done.stderr else None


def execution() -> dict[str, str] | None:
    """Return what tells this execution of this process's job from all others; None outside a job.

    Returns:
        ``cluster``, ``job`` and ``restarts``, which grows when Slurm requeues the job; empty where unknown.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    return {"cluster": os.environ.get("SLURM_CLUSTER_NAME", ""), "job": job, "restarts": _restarts(job) or ""}


def is_over(one: dict[str, str]) -> bool:
    """Whether Slurm says that an :func:`execution` has ended; False when this process cannot know.

    A process of such a job may still run: on a node that Slurm has lost.
    """
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_CLUSTER_NAME", "") != one["cluster"]:
        return False
    restarts = _restarts(one["job"])
    return restarts == "" or (restarts is not None and "" != one["restarts"] != restarts)


def _restarts(job: str) -> str | None:
    """How often a job was requeued; empty when it is over, None without an answer."""
    return squeue(job, "--Format=RestartCnt")

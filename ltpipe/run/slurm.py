"""What Slurm says about the job of this process, and about others. Standard library only."""

from __future__ import annotations

import os
import re
import subprocess

from ltpipe.errors import UserError

_SECONDS = 60
# All that a new step needs; the rest describes the step that this process is in, and would restrict the new one.
_OF_THE_JOB = {"SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR"}


def squeue(job: str, *options: str) -> str | None:
    """Ask ``squeue`` about one job.

    Args:
        job: Job id.
        *options: What to print.

    Returns:
        Its output without header; empty for a job that is over. None if Slurm does not answer.
    """
    done = ask("squeue", "--noheader", f"--jobs={job}", *options)
    if done is None or done.returncode == 0:
        return None if done is None else done.stdout.strip()
    return "" if "Invalid job id" in done.stderr else None


def ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run one of Slurm's commands; return what it printed, whatever its exit code, None if it does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None


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


def nodes() -> int:
    """Number of nodes of this process's job; 1 outside a job or without an answer."""
    job = os.environ.get("SLURM_JOB_ID")
    answer = squeue(job, "--format=%D") if job else None
    return int(answer) if answer and answer.isdigit() else 1


def first_address() -> str:
    """Address of the first node of this process's job, where the first process of a step runs.

    Raises:
        UserError: Slurm does not answer.
    """
    listed = squeue(os.environ["SLURM_JOB_ID"], "--format=%N") or ""
    names = ask("scontrol", "show", "hostnames", listed)
    first = names.stdout.split()[:1] if names else []
    node = ask("scontrol", "show", "node", *first)
    address = re.search(r"NodeAddr=(\S+)", node.stdout) if first and node else None
    if address is None:
        raise UserError("Slurm does not say where this job runs", got=listed or None, fix="run it again")
    return address[1]


def step_environment() -> dict[str, str]:
    """Environment for ``srun`` to start a step over the whole job, from inside another step."""
    prefixes = ("SLURM_", "SRUN_", "SBATCH_")
    return {key: value for key, value in os.environ.items() if key in _OF_THE_JOB or not key.startswith(prefixes)}

"""What Slurm says about jobs, and what that means for Snakemake."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

# Not one of Slurm's states: pending, and somebody has to release it.
HELD = "HELD"
# Slurm could not start the job, queued it again and holds it. Nothing but `scontrol release` would start it.
LAUNCH_FAILED = "LAUNCH_FAILED"
ALIVE = frozenset(
    "PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED REQUEUED REQUEUE_HOLD REQUEUE_FED RESIZING SIGNALING "
    "SPECIAL_EXIT STAGE_OUT".split()
) | {HELD}
# Slurm may requeue these jobs by itself; they are over when nothing has happened for a while.
UNDECIDED = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
GRACE_SECONDS = 20.0
# A job that slurmctld has never shown or has forgotten, and accounting does not know.
FORGOTTEN_SECONDS = 120.0
QUERY_SECONDS = 60
FAILED = {
    "CANCELLED": "cancelled, by scancel or an administrator",
    "DEADLINE": "its deadline passed",
    "FAILED": "the command failed; see the log",
    "OUT_OF_MEMORY": "out of memory; the next attempt gets more if the profile lets mem_mb grow",
    "TIMEOUT": "its time limit passed; the next attempt continues from the last checkpoint",
    "PREEMPTED": "preempted and not requeued; the next attempt continues from the last checkpoint",
    "NODE_FAIL": "its node failed and it was not requeued",
    "BOOT_FAIL": "its node did not start",
    "REVOKED": "revoked",
    LAUNCH_FAILED: "Slurm could not start it; see the log of slurmctld",
    "RECONFIG_FAIL": "its node could not be reconfigured",
}


def job_states(ids: Sequence[str | None]) -> dict[str, str] | None:
    """Ask Slurm about jobs: slurmctld first, the accounting database for those that slurmctld has forgotten.

    Args:
        ids: Job ids, ``<job>`` or ``<job>_<task>``.

    Returns:
        State by id, in one word such as ``RUNNING``; :data:`HELD` for a job that must be released, ``LAUNCH_FAILED``
        for one that Slurm holds because it could not start it. Ids nobody knows are left out. None if nothing answered.
    """
    wanted = {one for one in ids if one}
    shown = _table(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--user={os.getuid()}"])
    found = {one: shown[one] for one in wanted if shown and one in shown}
    rest = sorted(wanted - found.keys())
    if not rest:
        return found
    stored = _table(["sacct", "-X", "-n", "-P", "--format=JobID,State", f"--jobs={','.join(rest)}"])
    if shown is None and stored is None:
        return None
    return found | {one: state for one, state in (stored or {}).items() if one in rest}


def reason(number: str) -> str:
    """Slurm's reason for the state of a job, e.g. ``BadConstraints``; empty if it has none or does not answer."""
    text = (_output(["squeue", "--noheader", "--states=all", "--format=%r", f"--jobs={number}"]) or "").strip()
    return "" if text == "None" else text.splitlines()[0] if text else ""


def cancel(number: str) -> None:
    """Cancel a job; Slurm's silence is no error."""
    _output(["scancel", number])


def answers() -> bool:
    """Whether slurmctld answers."""
    return "is UP" in (_output(["scontrol", "ping"]) or "")


def _table(command: list[str]) -> dict[str, str] | None:
    """State by id from a command that prints ``id|state`` or ``id|state|reason``; None if it fails."""
    text = _output(command)
    if text is None:
        return None
    rows = ((*line.split("|"), "") for line in text.splitlines())
    return {row[0].strip(): _state(row[1], row[2]) for row in rows if len(row) >= 3 and row[1].strip()}


def _state(state: str, reason: str) -> str:
    # `CANCELLED by 0` and `CANCELLED+` are CANCELLED.
    word = state.split()[0].rstrip("+")
    why = reason.lower().replace("_", " ")
    if word != "PENDING" or "held" not in why:
        return word
    return LAUNCH_FAILED if why.startswith("launch failed") else HELD


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True)
class Outcome:
    """End of a job.

    Attributes:
        success: Whether it succeeded.
        message: What happened.
    """

    success: bool
    message: str = ""


@dataclass
class Watch:
    """Turns states into outcomes, with patience for jobs that Slurm may requeue or has not shown yet."""

    _since: dict[str, tuple[str, float]] = field(default_factory=dict)

    def judge(self, number: str, state: str | None, now: float) -> Outcome | None:
        """Return how a job ended, or None while it goes on.

        Args:
            number: Job id.
            state: Its state; None if Slurm answered but does not know the job.
            now: Time in seconds, of any clock.
        """
        patience = FORGOTTEN_SECONDS if state is None else GRACE_SECONDS if state in UNDECIDED else None
        if patience is not None:
            seen, since = self._since.setdefault(number, (str(state), now))
            if seen != str(state):
                self._since[number], since = (str(state), now), now
            if now - since < patience:
                return None
        self._since.pop(number, None)
        if state is None:
            return Outcome(True, "Slurm does not know it any more; its output files decide whether it succeeded")
        if state == "COMPLETED":
            return Outcome(True)
        return Outcome(False, f"{state}, {FAILED[state]}") if state in FAILED else None

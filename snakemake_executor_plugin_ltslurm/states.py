"""What Slurm says about jobs, and what that means for Snakemake."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ltpipe.run.slurm import ask

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


class State(NamedTuple):
    """What Slurm says about a job.

    Attributes:
        word: State in one word such as ``RUNNING``; :data:`HELD` for a job that must be released, ``LAUNCH_FAILED`` for
            one that Slurm holds because it could not start it.
        reason: Why it is in this state, e.g. ``Priority``; empty if Slurm gives none.
    """

    word: str
    reason: str = ""


def job_states(ids: Sequence[str | None]) -> dict[str, State] | None:
    """Ask Slurm about jobs of any user: slurmctld first, the accounting database for those it has forgotten.

    Args:
        ids: Job ids, ``<job>`` or ``<job>_<task>``.

    Returns:
        State by id. Ids nobody knows are left out. None if nothing answered.
    """
    wanted = {one for one in ids if one}
    if not wanted:
        return {}
    jobs = f"--jobs={','.join(sorted(wanted))}"
    shown = _table(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", jobs])
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
    return (job_states([number]) or {}).get(number, State("")).reason


def jobs_named(name: str, comment: str) -> list[str] | None:
    """Ids of the jobs with this name and comment, in whatever state; None if slurmctld does not answer."""
    text = run_slurm(["squeue", "--noheader", "--states=all", "--format=%i|%k", f"--name={name}"])
    if text is None:
        return None
    rows = (line.strip().partition("|") for line in text.splitlines())
    return [number for number, _, said in rows if said == comment]


def cancel(*numbers: str) -> bool:
    """Cancel jobs; whether Slurm has taken note."""
    return run_slurm(["scancel", *numbers]) is not None


def answers() -> bool:
    """Whether slurmctld answers."""
    return "is UP" in (run_slurm(["scontrol", "ping"]) or "")


def out_of_memory(number: str, log: Path) -> bool:
    """Whether a job that has failed ran out of memory: often only one of its steps says so, or its Slurm log."""
    steps = run_slurm(["sacct", "-n", "-P", "--format=State", f"--jobs={number}"]) or ""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - 65536))
            text = handle.read().decode(errors="replace")
    except OSError:
        text = ""
    return "OUT_OF_MEMORY" in steps or _OOM.search(text) is not None


_OOM = re.compile(
    r"slurmstepd\S*: error: .*(oom[-_ ]kill|[Ee]xceeded (job )?memory limit)|Some of the step tasks have been OOM"
)

# Reasons of pending jobs that do not pass by themselves, and what helps.
_STUCK = {
    r"PartitionTimeLimit|MaxWallDuration": "it asks for more time than it may have: lower its runtime in the profile",
    r"MinGRES": "jobs without a GPU are not allowed there: name a partition for them in the profile "
    "(ltslurm-cpu-partition)",
    r"InvalidAccount|AccountNotAllowed|AssocNotAllowed": "mend slurm_account in the profile",
    r"InvalidQOS|QOSNotAllowed": "mend qos in the profile",
    r"BadConstraints|PartitionNodeLimit|PerJob|PerNode|MinCpu|MinMemory|MaxMemPerLimit": "no node or rule of the "
    "cluster allows what it asks for: see its memory, CPUs and GPUs in the profile",
}


def never_starts(why: str) -> str | None:
    """What helps a pending job whose reason does not pass by itself; None if it only has to wait."""
    return next((helps for pattern, helps in _STUCK.items() if re.search(pattern, why)), None)


def _table(command: list[str]) -> dict[str, State] | None:
    """State by id from a command that prints ``id|state`` or ``id|state|reason``; None if it fails."""
    text = run_slurm(command)
    if text is None:
        return None
    rows = ((*line.split("|"), "") for line in text.splitlines())
    return {row[0].strip(): _state(row[1], row[2].strip()) for row in rows if len(row) >= 3 and row[1].strip()}


def _state(state: str, reason: str) -> State:
    # `CANCELLED by 0` and `CANCELLED+` are CANCELLED.
    word, reason = state.split()[0].rstrip("+"), "" if reason == "None" else reason
    why = reason.lower().replace("_", " ")
    if word == "PENDING" and "held" in why:
        word = LAUNCH_FAILED if why.startswith("launch failed") else HELD
    return State(word, reason)


def run_slurm(command: list[str]) -> str | None:
    """Output of one of Slurm's commands; None if it fails or does not answer."""
    done = ask(*command)
    # Of several ids squeue leaves out those it has forgotten; one alone is an error.
    answered = done is not None and (done.returncode == 0 or "Invalid job id" in done.stderr)
    return done.stdout if done is not None and answered else None


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
        return Outcome(False, self.describe(state)) if state in FAILED else None

    @staticmethod
    def describe(state: str) -> str:
        """What a state means in which a job has failed."""
        return f"{state}, {FAILED[state]}"

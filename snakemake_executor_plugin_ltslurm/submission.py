"""Giving a job to Slurm: the sbatch command, what partitions allow, and what sbatch's answers mean."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_or_get_slurm_job_id, validate_slurm_extra

from snakemake_executor_plugin_ltslurm.states import run_slurm

SBATCH_SECONDS = 300
# How long what a partition allows is remembered.
LIMITS_SECONDS = 300.0
# Refusals that pass when other jobs have ended, or when Slurm has room again.
_FULL = re.compile(
    r"\b(QOS|Assoc)\w*Submit\w*|MaxSubmitJobs|temporarily unable to accept|Resource temporarily unavailable|"
    r"[Mm]ax(imum)? (number of )?jobs? (count )?(limit )?(reached|exceeded)"
)
# After these the job may have been submitted all the same.
_UNCLEAR = re.compile(
    r"[Ss]ocket timed out|timed out|Unable to contact slurm|Zero Bytes|Connection (refused|reset|timed)|"
    r"Unexpected message|[Cc]ommunication|Transport endpoint|Network is unreachable"
)


class Asked(dict[str, Any]):
    """Resources by name, as attributes too: what the parent plugin expects of a job's resources."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Capped:
    """A job of Snakemake with other resources.

    Args:
        job: The job.
        resources: All its resources.
    """

    def __init__(self, job: Any, resources: dict[str, Any]) -> None:
        self._job, self.resources = job, Asked(resources)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)


@dataclass(frozen=True)
class Limits:
    """What a partition allows a job.

    Attributes:
        minutes: Longest time; None without a limit.
        memory: MB of its largest node.
    """

    minutes: int | None
    memory: int


class Partitions:
    """What partitions allow, asked from Slurm and remembered for a while."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Limits | None]] = {}

    def limits(self, name: str) -> Limits | None:
        """Return the limits of a partition; None if Slurm does not know it or does not answer."""
        asked, found = self._known.get(name, (-LIMITS_SECONDS, None))
        if found is None or time.monotonic() - asked > LIMITS_SECONDS:
            text = run_slurm(["sinfo", "--noheader", "--Node", f"--partition={name}", "--format=%l|%m"])
            found = _limits(text or "")
            self._known[name] = time.monotonic(), found
        return found

    def cap(self, job: Any, partition: str) -> tuple[Any, list[str]]:
        """Keep a job's growing requests within its partition, where a job that asks for more would wait for ever.

        Args:
            job: The job.
            partition: Its partition.

        Returns:
            The job as it is or with smaller requests, and what was made smaller.
        """
        limits = self.limits(partition) if partition else None
        if limits is None:
            return job, []
        resources, said = dict(job.resources.items()), []
        for name, most, unit in (("runtime", limits.minutes, "minutes"), ("mem_mb", limits.memory, "MB")):
            wanted = resources.get(name)
            if most is not None and isinstance(wanted, int | float) and wanted > most:
                resources[name] = most
                said.append(f"{name}: {most} {unit} instead of {wanted}, which partition {partition} does not allow")
        return (Capped(job, resources), said) if said else (job, [])


def _limits(text: str) -> Limits | None:
    rows = [line.split("|") for line in text.split() if "|" in line]
    sizes = [int(found[0]) for _, memory in rows if (found := re.match(r"\d+", memory))]
    return Limits(_minutes(rows[0][0]), max(sizes)) if sizes else None


def _minutes(text: str) -> int | None:
    """Minutes of ``days-hours:minutes:seconds``, where days and hours may be missing; None of ``infinite``."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (24 * days + hours) * 60 + minutes


def comment_of(job: Any) -> str:
    """The comment by which Slurm's commands show a job: its rule and wildcards."""
    wildcards = get_job_wildcards(job)
    return f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")


def log_of(job: Any, folder: Path) -> Path:
    """Slurm log of a job, with ``%j`` for its id; the folder is made."""
    kind = f"group_{job.name}" if job.is_group() else f"rule_{job.name}"
    file = Path(folder) / kind / get_job_wildcards(job) / "%j.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def command(job: Any, name: str, log: str, account: str, partition: str, workdir: str, **settings: Any) -> str:
    """The sbatch command of a job without what it runs.

    Args:
        job: The job.
        name: Slurm's name for it.
        log: Its Slurm log.
        account: Option for the account.
        partition: Option for the partition.
        workdir: Working directory.
        **settings: ``settings`` of the executor and ``failed_nodes``.
    """
    validate_slurm_extra(job)
    params = {
        "run_uuid": name,
        "slurm_logfile": log,
        "comment_str": comment_of(job),
        "account": account,
        "partition": partition,
        "workdir": workdir,
    }
    return str(get_submit_command(job, params, **settings) + set_gres_string(job))


@dataclass(frozen=True)
class Answer:
    """What sbatch said.

    Attributes:
        number: Id of the job; None if it was not submitted, or is not known to be.
        why: sbatch's own words, shortly.
        later: Whether the same request may be accepted later.
        unclear: Whether the job may have been submitted all the same.
    """

    number: str | None
    why: str = ""
    later: bool = False
    unclear: bool = False


def submit(call: str, script: str | None) -> Answer:
    """Run an sbatch command.

    Args:
        call: The command, for a shell.
        script: What it reads from its standard input.
    """
    try:
        done = subprocess.run(
            call, shell=True, text=True, capture_output=True, timeout=SBATCH_SECONDS, input=script or ""
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"sbatch did not answer within {SBATCH_SECONDS} s", later=True, unclear=True)
    why = _shortly(done.stderr)
    if done.returncode == 0 and "submission failed" not in done.stderr:
        return Answer(validate_or_get_slurm_job_id(done.stdout.strip().split(";")[0], done.stdout), why)
    unclear = _UNCLEAR.search(done.stderr) is not None
    return Answer(None, why, unclear or _FULL.search(done.stderr) is not None, unclear)


def names_no_limit(why: str) -> bool:
    """Whether sbatch says that some limit is met, the number of jobs or another, without the name of one."""
    return "job submit limit" in why and re.search(r"\b(QOS|Assoc)\w", why) is None


def _shortly(text: str) -> str:
    """sbatch's errors without its name and without the command, which Snakemake makes kilobytes long."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(line if len(line) <= 300 else f"{line[:300]} ..." for line in lines[:4])

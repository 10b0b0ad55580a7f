"""Snakemake executor ``ltslurm``: the Slurm executor plugin, made to survive an ordinary week of a cluster.

It is ``snakemake-executor-plugin-slurm`` with another way to watch jobs. Version 2.8.0 of that plugin waits for ever

* where no slurmdbd runs: it asks ``sacct`` because the program exists, and forgets all jobs when nothing answers;
* when slurmctld or slurmdbd is away at the moment of a poll, for the same reason;
* after ``scancel``, since ``CANCELLED by 0`` is none of the states it knows;
* after a preemption that cancels, since it waits for a requeue that never comes;
* for a job that Slurm could not start and holds, which happens to running jobs when slurmctld crashes.

Here ``squeue`` is asked first and ``sacct`` about jobs that slurmctld has forgotten; without an answer every job is
asked about again; and a run that lost its connection finds its jobs again instead of submitting them twice (see
:mod:`snakemake_executor_plugin_ltslurm.ledger`). Job submission, resources and options are the parent's: each
``--slurm-x`` is an ``--ltslurm-x`` here.

Drop this package, and ``executor: ltslurm`` with the prefix of the options in the profile, once upstream reports a
cancelled and a preempted job as failed and keeps its jobs when a status query fails; the tests marked ``slurm`` tell.
"""

import asyncio
import shlex
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import snakemake_executor_plugin_slurm as stock
from snakemake_executor_plugin_slurm import common_settings
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_ltslurm.ledger import Ledger
from snakemake_executor_plugin_ltslurm.quoting import between_double_quotes, taken_literally
from snakemake_executor_plugin_ltslurm.states import (
    ALIVE,
    HELD,
    LAUNCH_FAILED,
    Outcome,
    Watch,
    answers,
    cancel,
    job_states,
    reason,
)

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

IDLE_SECONDS = 2
RETRY_SECONDS = 10
LONGEST_SECONDS = 60
# How long a submission waits for a slurmctld that is away.
PATIENCE_SECONDS = 1800


@dataclass
class ExecutorSettings(stock.ExecutorSettings):
    """Settings of the parent, with other defaults."""

    status_command: Optional[str] = field(  # noqa: UP045 - Snakemake's parser knows no X | None
        default=None, metadata={"help": "Not used: squeue is asked first, then sacct.", "env_var": False}
    )
    init_seconds_before_status_checks: int = field(
        default=10,
        metadata={"help": f"Seconds between two polls; they grow to {LONGEST_SECONDS} while nothing ends."},
    )


class Executor(stock.Executor):  # type: ignore[misc]
    """Slurm executor that loses no job."""

    def __post_init__(self, test_mode: bool = False) -> None:
        """Read which jobs earlier runs have left."""
        super().__post_init__(test_mode)
        self._watch, self._held = Watch(), set[str]()
        self._changed = time.monotonic()
        self._stopping = threading.Event()
        self._ledger = Ledger(Path(self.workflow.workdir_init) / ".snakemake" / "ltslurm")
        self._forget_ended_jobs()

    def _forget_ended_jobs(self) -> None:
        """Drop the notes on jobs of earlier runs that have ended; without an answer they stay."""
        left = self._ledger.left()
        states = job_states(left) if left else None
        if states is not None:
            for number in left:
                if states.get(number) not in ALIVE:
                    self._forget(number, states.get(number))

    def _forget(self, number: str, state: str | None) -> None:
        """Drop the note on a job that is over; one that Slurm only holds is cancelled, so that it never starts."""
        if state == LAUNCH_FAILED:
            cancel(number)
        self._ledger.remove(number)

    # ---- watching ----------------------------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs that are over and yield the others."""
        if not active_jobs:
            self.next_seconds_between_status_checks = IDLE_SECONDS
            return
        async with self.status_rate_limiter:
            states = await asyncio.to_thread(job_states, [job.external_jobid for job in active_jobs])
        if states is None:
            self.logger.warning(f"Slurm did not answer; will ask again in {RETRY_SECONDS} s.")
            self.next_seconds_between_status_checks = RETRY_SECONDS
            for job in active_jobs:
                yield job
            return
        running = []
        for job in active_jobs:
            state = states.get(job.external_jobid)
            self._tell_if_held(job.external_jobid, state)
            outcome = self._watch.judge(job.external_jobid, state, time.monotonic())
            if outcome is None:
                running.append(job)
            else:
                self._finish(job, state, outcome)
        if len(running) < len(active_jobs):
            self._changed = time.monotonic()
        self.next_seconds_between_status_checks = self._pause() if running else IDLE_SECONDS
        for job in running:
            yield job

    def _pause(self) -> float:
        """Seconds to the next poll: a quarter of the time since a job was submitted or ended, within limits."""
        first = self.workflow.executor_settings.init_seconds_before_status_checks
        return min(max(first, (time.monotonic() - self._changed) / 4), max(first, LONGEST_SECONDS))

    async def sleep(self) -> None:
        """Wait for the next poll; not longer than Snakemake runs."""
        end = time.monotonic() + self.next_seconds_between_status_checks
        while self.wait and time.monotonic() < end:
            await asyncio.sleep(1)

    def _tell_if_held(self, number: str, state: str | None) -> None:
        """Say once that a job waits for somebody."""
        if state != HELD:
            self._held.discard(number)
        elif number not in self._held:
            self._held.add(number)
            self.logger.warning(
                f"Slurm job {number} is held ({reason(number)}). It goes on after: scontrol release {number}"
            )

    def _finish(self, job: SubmittedJobInfo, state: str | None, outcome: Outcome) -> None:
        """Tell Snakemake how a job ended."""
        log = job.aux["slurm_logfile"]
        if outcome.success:
            self._forget(job.external_jobid, state)
            if outcome.message:
                self.logger.warning(f"Slurm job {job.external_jobid}: {outcome.message}")
            self.report_job_success(job)
            if not self.workflow.executor_settings.keep_successful_logs:
                log.unlink(missing_ok=True)
        else:
            why = reason(job.external_jobid)
            self._forget(job.external_jobid, state)
            text = f"Slurm job {job.external_jobid} ended: {outcome.message}{f' (reason: {why})' if why else ''}. "
            self.report_job_error(job, msg=text, aux_logs=[str(log)])

    # ---- submitting --------------------------------------------------------------------------------------------------

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit a job, unless an earlier run's job for the same files still runs: then watch that one, or refuse."""
        try:
            if any(job.resources.get(name) for name in ("slurm_cluster", "cluster", "clusters")):
                raise WorkflowError("ltslurm submits to one cluster only; the executor slurm knows several")
            self._wait_for_slurm()
            found = self._still_running(job)
        except Exception as error:  # the thread that called would swallow it, and Snakemake wait for ever
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"{error} ")
            return
        if found is None:
            super().run_job(job)
            return
        number, log = found
        self.logger.info(
            f"Slurm job {number} of an earlier run still makes {job.output[0]}: waiting for it (log: {log})."
        )
        self._report_job_submission_threadsafe(SubmittedJobInfo(job, number, {"slurm_logfile": Path(log)}))

    def _wait_for_slurm(self) -> None:
        """Wait until slurmctld answers, so that its restart costs no attempt.

        Raises:
            WorkflowError: It stays away, or Snakemake is stopped.
        """
        start = time.monotonic()
        while not answers():
            self.logger.warning(f"Slurm did not answer; will try to submit again in {RETRY_SECONDS} s.")
            if self._stopping.wait(RETRY_SECONDS) or time.monotonic() - start > PATIENCE_SECONDS:
                raise WorkflowError("Slurm did not answer")

    def shutdown(self) -> None:
        """End submissions that wait for Slurm, then everything else."""
        self._stopping.set()
        super().shutdown()

    def _still_running(self, job: JobExecutorInterface) -> tuple[str, str] | None:
        """Id and log of an earlier run's job that makes exactly what this job would.

        Raises:
            WorkflowError: Such a job makes the same files from other inputs or parameters.
        """
        entries = self._ledger.overlapping(job)
        if not entries:
            return None
        states = job_states([entry.number for entry in entries])
        if states is None:
            raise WorkflowError(f"Slurm did not say whether the job of an earlier run still makes {job.output[0]}")
        alive = [entry for entry in entries if states.get(entry.number, "") in ALIVE]
        for entry in entries:
            if entry not in alive:
                self._forget(entry.number, states.get(entry.number))
        if len(alive) == 1 and alive[0].fingerprint == self._ledger.fingerprint(job):
            return alive[0].number, alive[0].log
        if alive:
            numbers = " ".join(entry.number for entry in alive)
            raise WorkflowError(
                f"jobs of an earlier run still write {job.output[0]}, with other inputs or parameters: Slurm job "
                f"{numbers}. Wait for their end, or stop them: scancel {numbers}"
            )
        return None

    def _report_job_submission_threadsafe(self, job_info: SubmittedJobInfo) -> None:
        """Note the job on disk before Snakemake counts it as submitted."""
        self._ledger.add(job_info.job, str(job_info.external_jobid), str(job_info.aux["slurm_logfile"]))
        self._changed = time.monotonic()
        super()._report_job_submission_threadsafe(job_info)

    def format_job_exec(self, job: JobExecutorInterface) -> str:
        """The command of a job, in which the shells it passes take every name literally.

        Raises:
            WorkflowError: Snakemake does not quote a name in such a way.
        """
        command: str = super().format_job_exec(job)
        python = self.get_python_executable()
        # What stands before Python is the user's own, and may mean something to a shell.
        names = [python, str(self.workflow.workdir_init), *map(str, job.input)]
        if not taken_literally(command.partition(python)[2], python, job.input, arrays=bool(self.array_jobs)):
            raise WorkflowError(
                "Slurm jobs cannot be given one of these names safely: the working folder, the Python that runs, an "
                f"experiment file of --config, or an input of {job.name} ({', '.join(map(repr, names))}). Use names "
                "without quotes, backslashes and dollar signs, and a Python whose path is plain."
            )
        return command if self.workflow.executor_settings.pass_command_as_script else between_double_quotes(command)

    def get_account_arg(self, job: JobExecutorInterface) -> Iterator[str]:
        """The account as given: the parent refuses it where no slurmdbd runs, and sbatch tells when it is wrong."""
        account = job.resources.get("slurm_account")
        yield f" -A {shlex.quote(str(account))}" if account else ""

"""Snakemake executor ``ltslurm``: the Slurm executor plugin, made to survive an ordinary week of a cluster.

It is ``snakemake-executor-plugin-slurm`` with another way to watch jobs. Version 2.8.0 of that plugin waits for ever

* where no slurmdbd runs: it asks ``sacct`` because the program exists, and forgets all jobs when nothing answers;
* when slurmctld or slurmdbd is away at the moment of a poll, for the same reason;
* after ``scancel``, since ``CANCELLED by 0`` is none of the states it knows;
* after a preemption that cancels, since it waits for a requeue that never comes;
* for a job that Slurm could not start and holds, which happens to running jobs when slurmctld crashes.

Here ``squeue`` is asked first and ``sacct`` about jobs that slurmctld has forgotten; without an answer every job is
asked about again; and a run that lost its connection finds its jobs again instead of submitting them twice (see
:mod:`snakemake_executor_plugin_ltslurm.ledger`). A submission waits while Slurm has no room for it, asks for no more
than its partition allows, and is looked for when sbatch's answer is lost (see
:mod:`snakemake_executor_plugin_ltslurm.submission`). Resources and options are the parent's: each ``--slurm-x`` is an
``--ltslurm-x`` here.

Drop this package, and ``executor: ltslurm`` with the prefix of the options in the profile, once upstream reports a
cancelled and a preempted job as failed and keeps its jobs when a status query fails; the tests marked ``slurm`` tell.
"""

import asyncio
import hashlib
import os
import shlex
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import snakemake_executor_plugin_slurm as stock
from snakemake_executor_plugin_slurm import common_settings
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_ltslurm import submission
from snakemake_executor_plugin_ltslurm.ledger import Entry, Ledger
from snakemake_executor_plugin_ltslurm.quoting import between_double_quotes, taken_literally
from snakemake_executor_plugin_ltslurm.rhythm import LONGEST_SECONDS, RETRY_SECONDS, Rhythm
from snakemake_executor_plugin_ltslurm.states import (
    ALIVE,
    HELD,
    LAUNCH_FAILED,
    Outcome,
    State,
    Watch,
    answers,
    cancel,
    job_states,
    jobs_named,
    never_starts,
    out_of_memory,
    reason,
)

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

# How often is looked whether Slurm should be asked.
TICK_SECONDS = 1
# How long a submission waits for a slurmctld that is away.
PATIENCE_SECONDS = 1800
# How long a job needs to be seen whose sbatch got no answer.
LOST_SECONDS = 5


class _Stopped(Exception):
    """Snakemake is stopped: nothing more is submitted."""


def _word(state: State | None) -> str | None:
    return None if state is None else state.word


@dataclass
class ExecutorSettings(stock.ExecutorSettings):
    """Settings of the parent, with other defaults."""

    status_command: Optional[str] = field(  # noqa: UP045 - Snakemake's parser knows no X | None
        default=None, metadata={"help": "Not used: squeue is asked first, then sacct.", "env_var": False}
    )
    init_seconds_before_status_checks: int = field(
        default=3,
        metadata={"help": f"Seconds between two polls; they grow to {LONGEST_SECONDS} while nothing ends."},
    )
    cpu_partition: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Partition of jobs without a GPU; that of the others by default."}
    )


class Executor(stock.Executor):  # type: ignore[misc]
    """Slurm executor that loses no job."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        """Polls may begin before ``__post_init__`` has run: what they need is there first."""
        self._rhythm = Rhythm(workflow.executor_settings.init_seconds_before_status_checks)
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Read which jobs earlier runs have left."""
        super().__post_init__(test_mode)
        self._watch, self._told = Watch(), dict[str, str]()
        self._stopping = threading.Event()
        self._ours, self._seen = set[str](), set[str]()
        self._partitions_asked, self._full = submission.Partitions(), ""
        # Homes of compute nodes may be absent or read-only; jobs inherit this. Start weights stay where they are.
        caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        os.environ.setdefault("TORCH_HOME", str(Path(caches) / "torch"))
        os.environ.setdefault("XDG_CACHE_HOME", str(Path(self.workflow.workdir_init) / ".snakemake" / "cache"))
        self._ledger = Ledger(Path(self.workflow.workdir_init) / ".snakemake" / "ltslurm")
        self._forget_ended_jobs()

    def _forget_ended_jobs(self) -> None:
        """Drop the notes on jobs of earlier runs that have ended; without an answer they stay."""
        left = self._ledger.left()
        states = job_states(left) if left else None
        if states is not None:
            for number in left:
                if _word(states.get(number)) not in ALIVE:
                    self._forget(number, states.get(number))

    def _forget(self, number: str, state: State | None) -> None:
        """Drop the note on a job that is over; one that Slurm only holds is cancelled, so that it never starts."""
        if _word(state) == LAUNCH_FAILED:
            cancel(number)
        self._ours.discard(number)
        self._ledger.remove(number)

    # ---- watching ----------------------------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs that are over and yield the others; all of them while it is too early to ask."""
        numbers = [job.external_jobid for job in active_jobs]
        if not self._rhythm.due(numbers, time.monotonic()):
            for job in active_jobs:
                yield job
            return
        async with self.status_rate_limiter:
            states = await asyncio.to_thread(job_states, numbers)
        if states is None:
            self.logger.warning(f"Slurm did not answer; will ask again in {RETRY_SECONDS} s.")
            self._rhythm.unanswered(time.monotonic())
            for job in active_jobs:
                yield job
            return
        running = []
        for job in active_jobs:
            state = states.get(job.external_jobid)
            self._tell_why_it_waits(job, state)
            outcome = self._watch.judge(job.external_jobid, _word(state), time.monotonic())
            if outcome is None:
                running.append(job)
            else:
                self._finish(job, state, outcome)
        self._rhythm.answered(time.monotonic(), ended=len(running) < len(active_jobs))
        for job in running:
            yield job

    async def sleep(self) -> None:
        """Wait until it may be time to ask; jobs that are submitted meanwhile may want it sooner than those before."""
        await asyncio.sleep(TICK_SECONDS)

    def _tell_why_it_waits(self, job: SubmittedJobInfo, state: State | None) -> None:
        """Say once that a job waits for somebody, or for what does not come by itself."""
        number, why = job.external_jobid, "" if state is None else state.reason
        helps = never_starts(why) if _word(state) == "PENDING" else None
        if _word(state) != HELD and helps is None:
            self._told.pop(number, None)
        elif self._told.get(number) != why:
            self._told[number] = why
            if helps is not None:
                text = (
                    f"waits for {why}, which does not pass by itself: {helps}, stop Snakemake with Ctrl-C (which "
                    "cancels the job) and start it again"
                )
            elif "Admin" in why:
                text = f"is held ({why}): an administrator has to release it"
            else:
                text = f"is held ({why}). It goes on after: scontrol release {number}"
            self.logger.warning(f"Slurm job {number} ({job.job.name}) {text}.")

    def _finish(self, job: SubmittedJobInfo, state: State | None, outcome: Outcome) -> None:
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
            why, word = reason(job.external_jobid), _word(state)
            if word == "FAILED" and out_of_memory(job.external_jobid, log):
                word, outcome = "OUT_OF_MEMORY", Outcome(False, Watch.describe("OUT_OF_MEMORY"))
            self._forget(job.external_jobid, state)
            text = f"Slurm job {job.external_jobid} ended: {outcome.message}{f' (reason: {why})' if why else ''}. "
            if word != "FAILED":  # what has failed by itself has told why
                self._tell_stage(job.job, text)
            self.report_job_error(job, msg=text, aux_logs=[str(log)])

    def _tell_stage(self, job: JobExecutorInterface, text: str) -> None:
        """Add to the log of a stage what happened to it, where ``ltpipe status`` finds it."""
        for file in getattr(job, "log", None) or ():
            path = Path(self.workflow.workdir_init) / str(file)
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as log:
                    log.write(f"\nltpipe slurm: {text.strip()}\n")

    # ---- submitting --------------------------------------------------------------------------------------------------

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Submit jobs; from now on SIGTERM does what Ctrl-C does."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().run_jobs(jobs)

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit a job, unless an earlier run's job for the same files still runs: then watch that one, or refuse."""
        try:
            if any(job.resources.get(name) for name in ("slurm_cluster", "cluster", "clusters")):
                raise WorkflowError("ltslurm submits to one cluster only; the executor slurm knows several")
            self._wait_for_slurm()
            call, request = self._request(job)
            found = self._still_running(job, request)
            if found is None:
                self._submit(job, call, request)
            else:
                number, log = found
                self.logger.info(
                    f"Slurm job {number} of an earlier run still makes {job.output[0]}: waiting for it (log: {log})."
                )
                self._note(job, number, Path(log), request)
        except _Stopped:
            return
        except Exception as error:  # the thread that called would swallow it, and Snakemake wait for ever
            self._tell_stage(job, str(error))
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"{error} ")

    def _request(self, job: JobExecutorInterface) -> tuple[str, str]:
        """The sbatch command of a job, without what it runs, and a digest of what it asks for."""
        account, partition = next(self.get_account_arg(job)), self.get_partition_arg(job)
        words = shlex.split(partition)
        asked, said = self._partitions_asked.cap(job, words[-1] if words else "")
        for one in said:
            self.logger.info(f"{job.name}: {one}.")
        workdir = str(self.workflow.workdir_init)
        settings = {"settings": self.workflow.executor_settings, "failed_nodes": self._failed_nodes}
        call, plain = (
            submission.command(asked, name, log, account, partition, workdir, **settings)
            for name, log in ((self.run_uuid, str(submission.log_of(job, self.slurm_logdir))), ("", ""))
        )
        return call, hashlib.sha256(plain.encode()).hexdigest()

    def _submit(self, job: JobExecutorInterface, call: str, request: str) -> None:
        """Give a job to Slurm, waiting while it has no room.

        Raises:
            WorkflowError: Slurm refuses it.
            _Stopped: Snakemake is stopped.
        """
        work, script = self.format_job_exec(job), None
        if self.workflow.executor_settings.pass_command_as_script:
            call, script = f"{call} /dev/stdin", f"#!/bin/sh\n{work}"
        else:
            # Without this sbatch takes what follows a quote for arguments of its own.
            call += ' --wrap="' + work.replace('"', '\\"') + '"'
        while True:
            if self._stopping.is_set():
                raise _Stopped
            answer = submission.submit(call, script)
            number = answer.number
            if answer.unclear:
                self._wait_for_slurm()
                number = self._submitted_all_the_same(job)
            if number is not None:
                self._full = ""
                log = submission.log_of(job, self.slurm_logdir)
                log = log.with_name(log.name.replace("%j", number))
                self._note(job, number, log, request)
                self.logger.info(f"Job {job.jobid} has been submitted with SLURM jobid {number} (log: {log}).")
                return
            if not answer.later and not self._only_full(answer.why):
                raise WorkflowError(f"Slurm refused {job.name}: {answer.why or 'sbatch failed without a word'}.")
            if self._full != answer.why:
                self._full = answer.why
                self.logger.warning(f"Slurm takes no more jobs now ({answer.why}); will submit when it does.")
            self._stopping.wait(RETRY_SECONDS)

    def _only_full(self, why: str) -> bool:
        """Whether a refusal without its limit's name means the number of jobs: some of ours are there to end."""
        return submission.names_no_limit(why) and bool(self._ours)

    def _submitted_all_the_same(self, job: JobExecutorInterface) -> str | None:
        """Id of the job that sbatch submitted without being able to say so; None if it did not.

        Raises:
            _Stopped: Snakemake is stopped; all jobs of its name are cancelled then.
        """
        pause, found = LOST_SECONDS, None
        while found is None:
            if self._stopping.wait(pause):
                raise _Stopped
            pause, found = RETRY_SECONDS, jobs_named(self.run_uuid, submission.comment_of(job))
        lost = sorted((number for number in found if number not in self._seen), key=int)
        if len(lost) > 1:
            cancel(*lost[1:])
        if lost:
            self.logger.info(f"Slurm job {lost[0]} was submitted although sbatch could not say so.")
        return lost[0] if lost else None

    def _note(self, job: JobExecutorInterface, number: str, log: Path, request: str) -> None:
        self._report_job_submission_threadsafe(
            SubmittedJobInfo(job, number, {"slurm_logfile": log, "request": request})
        )

    def _report_job_submission_threadsafe(self, job_info: SubmittedJobInfo) -> None:
        """Note a job on disk before Snakemake counts it as submitted.

        Raises:
            WorkflowError: It cannot be noted, so that a later run would not find it: it is cancelled.
        """
        number = str(job_info.external_jobid)
        self._ours.add(number)
        self._seen.add(number)
        try:
            log, request = str(job_info.aux["slurm_logfile"]), job_info.aux.get("request", "")
            self._ledger.add(job_info.job, number, log, request)
        except OSError as error:
            gone = cancel(number)
            raise WorkflowError(
                f"Slurm job {number} could not be noted in {self._ledger.folder} ({error.strerror}); "
                + ("it was cancelled." if gone else f"stop it: scancel {number}")
            ) from error
        super()._report_job_submission_threadsafe(job_info)

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop submitting, then cancel what has been submitted."""
        self._stopping.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs of this run, also those that Snakemake does not count as submitted, and adopted ones."""
        numbers = sorted({job.external_jobid for job in active_jobs if job.external_jobid} | self._ours)
        # By name, too: of a job whose sbatch got no answer nobody knows the id.
        told = [cancel(*what) for what in (numbers, [f"--name={self.run_uuid}"]) if what]
        if not all(told):
            ids = " ".join(numbers)
            self.logger.warning(
                f"Slurm did not answer; stop the jobs yourself: scancel {ids}; scancel --name={self.run_uuid}"
            )

    def _wait_for_slurm(self) -> None:
        """Wait until slurmctld answers, so that its restart costs no attempt.

        Raises:
            WorkflowError: It stays away.
            _Stopped: Snakemake is stopped.
        """
        start = time.monotonic()
        while not answers():
            self.logger.warning(f"Slurm did not answer; will try to submit again in {RETRY_SECONDS} s.")
            if self._stopping.wait(RETRY_SECONDS):
                raise _Stopped
            if time.monotonic() - start > PATIENCE_SECONDS:
                raise WorkflowError("Slurm did not answer")

    def shutdown(self) -> None:
        """End submissions that wait for Slurm, then everything else."""
        self._stopping.set()
        super().shutdown()

    def _still_running(self, job: JobExecutorInterface, request: str) -> tuple[str, str] | None:
        """Id and log of an earlier run's job that makes exactly what this job would.

        One that has not started, and asks Slurm for something else than this job would, is cancelled.

        Raises:
            WorkflowError: Such a job makes the same files from other inputs or parameters.
        """
        entries = self._ledger.overlapping(job)
        if not entries:
            return None
        states = job_states([entry.number for entry in entries])
        if states is None:
            raise WorkflowError(f"Slurm did not say whether the job of an earlier run still makes {job.output[0]}")
        alive = []
        for entry in entries:
            word = _word(states.get(entry.number))
            if word not in ALIVE or (word in ("PENDING", HELD) and self._replaced(entry, request)):
                self._forget(entry.number, states.get(entry.number))
            else:
                alive.append(entry)
        if len(alive) == 1 and alive[0].fingerprint == self._ledger.fingerprint(job):
            return alive[0].number, alive[0].log
        if alive:
            numbers = " ".join(entry.number for entry in alive)
            raise WorkflowError(
                f"jobs of an earlier run still write {job.output[0]}, with other inputs or parameters: Slurm job "
                f"{numbers}. Wait for their end, or stop them: scancel {numbers}"
            )
        return None

    def _replaced(self, entry: Entry, request: str) -> bool:
        """Whether a waiting job of an earlier run was cancelled because it asks for something else."""
        if entry.request in ("", request) or not cancel(entry.number):
            return False
        self.logger.info(
            f"Slurm job {entry.number} of an earlier run waits with another request (account, partition, time, memory "
            "...): cancelled, and submitted anew."
        )
        return True

    def get_partition_arg(self, job: JobExecutorInterface) -> str:
        """The partition; jobs without a GPU may have one of their own."""
        name = self.workflow.executor_settings.cpu_partition
        if name and not job.resources.get("gpu") and "gpu" not in str(job.resources.get("gres", "")):
            return f" -p {shlex.quote(name)}"
        return str(super().get_partition_arg(job))

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

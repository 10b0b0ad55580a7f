"""The executor ``ltslurm`` with a Slurm of shell scripts: what it makes of every answer and of none."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from ltpipe.run.log_progress import failure
from snakemake_executor_plugin_ltslurm import RETRY_SECONDS, Executor, ExecutorSettings, _Stopped
from snakemake_executor_plugin_ltslurm.ledger import Ledger
from snakemake_executor_plugin_ltslurm.rhythm import Rhythm
from snakemake_executor_plugin_ltslurm.states import (
    FORGOTTEN_SECONDS,
    GRACE_SECONDS,
    State,
    Watch,
    answers,
    job_states,
    out_of_memory,
)
from snakemake_executor_plugin_ltslurm.submission import Asked, Limits, Partitions, submit


class FakeSlurm:
    """Commands on PATH that print what a test says; a command without an answer fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("squeue", "sacct", "scontrol", "sinfo", "sbatch"):
            self.silent(name)
        self.does("scancel", f'echo "$@" >> {folder}/cancelled')

    def says(self, name: str, text: str) -> None:
        """Let a command print a text."""
        self.does(name, f"cat <<'END'\n{text}\nEND")

    def silent(self, name: str) -> None:
        """Let a command fail."""
        self.does(name, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1")

    @property
    def cancelled(self) -> list[str]:
        """Ids given to ``scancel``."""
        file = self.folder / "cancelled"
        return file.read_text().split() if file.exists() else []

    def does(self, name: str, body: str) -> None:
        """Let a command run lines of a shell."""
        file = self.folder / f".{name}"
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        file.rename(self.folder / name)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return FakeSlurm(folder)


def test_squeue_answers(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "1|RUNNING\n2|COMPLETED\n3|FAILED\n7_1|PENDING")
    assert words("1", "2", "7_1") == {"1": "RUNNING", "2": "COMPLETED", "7_1": "PENDING"}


def words(*numbers: str) -> dict[str, str] | None:
    states = job_states(numbers)
    return None if states is None else {number: state.word for number, state in states.items()}


def test_jobs_are_asked_for_by_their_ids_whoever_submitted_them(slurm: FakeSlurm) -> None:
    """A colleague's job in a shared folder would be submitted twice if it were not seen."""
    slurm.does("squeue", 'case "$*" in *--jobs=1,2*) case "$*" in *--user*) ;; *) echo "1|RUNNING|None";; esac;; esac')
    assert job_states(["2", "1"]) == {"1": State("RUNNING")}


def test_one_job_that_slurmctld_forgot_is_an_answer(slurm: FakeSlurm) -> None:
    slurm.does("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert job_states(["1"]) == {}


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("1|PENDING|launch failed requeued held", "LAUNCH_FAILED"),
        ("1|PENDING|launch_failed_requeued_held", "LAUNCH_FAILED"),
        ("1|COMPLETING|launch failed requeued held", "COMPLETING"),
        ("1|PENDING|JobHeldUser", "HELD"),
        ("1|PENDING|JobHeldAdmin", "HELD"),
        ("1|PENDING|Priority", "PENDING"),
        ("1|RUNNING|None", "RUNNING"),
    ],
)
def test_held_jobs(slurm: FakeSlurm, line: str, state: str) -> None:
    slurm.says("squeue", line)
    assert words("1") == {"1": state}


def test_sacct_knows_what_slurmctld_forgot(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "1|RUNNING")
    slurm.says("sacct", "2|CANCELLED by 0\n4|COMPLETED\n5|CANCELLED+")
    assert words("1", "2", "5") == {"1": "RUNNING", "2": "CANCELLED", "5": "CANCELLED"}


def test_sacct_alone(slurm: FakeSlurm) -> None:
    slurm.says("sacct", "1|TIMEOUT")
    assert words("1", "2") == {"1": "TIMEOUT"}


def test_no_answer_is_not_an_empty_answer(slurm: FakeSlurm) -> None:
    assert job_states(["1"]) is None
    slurm.says("squeue", "")
    assert job_states(["1"]) == {}


def test_ping(slurm: FakeSlurm) -> None:
    assert not answers()
    slurm.says("scontrol", "Slurmctld(primary) at login is DOWN")
    assert not answers()
    slurm.says("scontrol", "Slurmctld(primary) at login is UP")
    assert answers()


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "LAUNCH_FAILED"])
def test_failures_are_over_at_once(state: str) -> None:
    outcome = Watch().judge("1", state, 0.0)
    assert outcome is not None and not outcome.success and outcome.message.startswith(state)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "HELD", "A_NEW_STATE"])
def test_running_jobs_go_on(state: str) -> None:
    watch = Watch()
    assert watch.judge("1", state, 0.0) is None and watch.judge("1", state, 1e6) is None


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_grace_for_a_requeue(state: str) -> None:
    watch = Watch()
    assert watch.judge("1", state, 0.0) is None
    assert watch.judge("1", "PENDING", 5.0) is None
    assert watch.judge("1", state, 100.0) is None, "the requeued job was preempted again: a new grace"
    outcome = watch.judge("1", state, 100.0 + GRACE_SECONDS)
    assert outcome is not None and not outcome.success


def test_forgotten_jobs_are_decided_by_their_files() -> None:
    watch = Watch()
    assert watch.judge("1", None, 0.0) is None
    assert watch.judge("1", None, FORGOTTEN_SECONDS - 1) is None
    outcome = watch.judge("1", None, FORGOTTEN_SECONDS)
    assert outcome is not None and outcome.success and "output files" in outcome.message


def _job(output: str, digest: str = "a", **resources: Any) -> Any:
    rule = SimpleNamespace(name="base")
    return SimpleNamespace(
        rule=rule,
        name="base",
        jobid=7,
        threads=1,
        wildcards=[],
        wildcards_dict={},
        input=["split.json"],
        output=[output],
        log=["stage.log"],
        params=[digest],
        resources=Asked(resources),
        is_group=lambda: False,
    )


def test_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(_job("m.pth"), "12", "log/12.log")
    assert ledger.overlapping(_job("m.pth")) == [], "only jobs of earlier runs count"
    left = Ledger(tmp_path / "ledger")
    (entry,) = left.overlapping(_job("m.pth", mem_mb=9))
    assert entry.number == "12" and entry.fingerprint == Ledger.fingerprint(_job("m.pth", mem_mb=9))
    assert entry.fingerprint != Ledger.fingerprint(_job("m.pth", digest="b"))
    assert left.overlapping(_job("other.pth")) == []
    left.remove("12")
    assert left.overlapping(_job("m.pth")) == [] and not list((tmp_path / "ledger").iterdir())
    (tmp_path / "ledger" / "13.json").write_text("{cut off")
    assert Ledger(tmp_path / "ledger").overlapping(_job("m.pth")) == []


class Recorder:
    """An executor whose Snakemake only records."""

    def __init__(self, folder: Path) -> None:
        executor = Executor.__new__(Executor)
        executor._ledger, executor._watch, executor._told = Ledger(folder), Watch(), {}
        executor._ours, executor._seen, executor._failed_nodes = set(), set(), set()
        executor._partitions, executor._partitions_asked, executor._full = None, Partitions(), ""
        executor.run_uuid, executor.slurm_logdir, executor._main_event_loop = "run", folder.parent / "logs", None
        executor._job_submission_executor = ThreadPoolExecutor(2)
        executor.logger = logging.getLogger("test")
        executor.status_rate_limiter = _NoLimit()
        executor._stopping = threading.Event()
        executor._rhythm = Rhythm(10)
        settings = ExecutorSettings(status_command=None, init_seconds_before_status_checks=10)
        executor.workflow = SimpleNamespace(executor_settings=settings, workdir_init=str(folder.parent))
        executor.format_job_exec = lambda job: "true"
        self.said: list[tuple[str, str]] = []
        self.submitted: list[str] = []
        executor.report_job_submission = lambda job: self.submitted.append(job.external_jobid)
        executor.report_job_success = lambda job: self.said.append(("ok", job.external_jobid))
        executor.report_job_error = lambda job, msg=None, **_: self.said.append((msg, job.external_jobid))
        self.executor = executor

    def pause(self) -> int:
        """Seconds to the next poll."""
        return round(self.executor._rhythm.ask_at - time.monotonic())

    def poll(self, *numbers: str) -> list[str]:
        """Ids that are watched further after Slurm was asked."""
        self.executor._rhythm.ask_at = 0.0
        log = {"slurm_logfile": Path("missing.log")}
        jobs = [SubmittedJobInfo(_job(number), number, log) for number in numbers]

        async def ask() -> list[str]:
            return [str(job.external_jobid) async for job in self.executor.check_active_jobs(jobs)]

        return asyncio.run(ask())


class _NoLimit:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


def test_polls(slurm: FakeSlurm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(tmp_path / "ledger")
    assert recorder.poll("1", "2") == ["1", "2"] and recorder.said == []
    assert "Slurm did not answer; will ask again" in caplog.text
    assert recorder.pause() == RETRY_SECONDS
    slurm.says("squeue", "1|RUNNING\n2|COMPLETED\n3|CANCELLED")
    assert recorder.poll("1", "2", "3") == ["1"]
    assert recorder.said[0] == ("ok", "2") and recorder.said[1][1] == "3" and "CANCELLED" in recorder.said[1][0]
    assert recorder.pause() == 10
    slurm.silent("squeue")
    assert not recorder.executor._rhythm.due(["1"], time.monotonic()), "not asked again before that"


def test_polls_may_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake starts the thread that polls before ``__post_init__``, and waits for ever for one that has ended."""
    polled = []

    async def poll(executor: Executor) -> None:
        polled.extend([job async for job in executor.check_active_jobs([])])

    started = lambda executor, *_: asyncio.run(poll(executor))  # noqa: E731
    monkeypatch.setattr("snakemake_executor_plugin_slurm.Executor.__init__", started)
    Executor(SimpleNamespace(executor_settings=ExecutorSettings(status_command=None)), logging.getLogger("test"))
    assert polled == []


def test_when_slurm_is_asked() -> None:
    rhythm = Rhythm(3)
    assert not rhythm.due([], 0)
    assert not rhythm.due(["1"], 100) and not rhythm.due(["1"], 102.9) and rhythm.due(["1"], 103)
    rhythm.answered(103, ended=False)
    assert not rhythm.due(["1"], 105.9) and rhythm.due(["1"], 106)
    pauses = []
    for now in (112, 140, 340, 3700):
        rhythm.answered(now, ended=False)
        pauses.append(rhythm.ask_at - now)
    assert pauses == [3, 10, 60, 60], "a quarter of the time since something happened, a minute at most"
    assert not rhythm.due(["1", "2"], 3710) and rhythm.due(["1", "2"], 3713), "another job was submitted"
    assert rhythm.due(["1", "2", "3"], 3713.5), "which puts nothing off"
    rhythm.answered(3714, ended=True)
    assert rhythm.ask_at == 3717
    assert not rhythm.due([], 3800) and not rhythm.due(["4"], 3801) and rhythm.due(["4"], 3804)


def test_a_job_that_slurm_could_not_start_fails_and_never_starts(slurm: FakeSlurm, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "ledger")
    slurm.says("squeue", "1|RUNNING|None\n2|PENDING|launch failed requeued held")
    assert recorder.poll("1", "2") == ["1"]
    ((message, number),) = recorder.said
    assert number == "2" and "could not start it" in message and slurm.cancelled == ["2"]


def test_a_held_job_waits_and_says_so_once(slurm: FakeSlurm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(tmp_path / "ledger")
    slurm.says("squeue", "1|PENDING|JobHeldUser")
    assert recorder.poll("1") == recorder.poll("1") == ["1"]
    slurm.says("squeue", "1|RUNNING|None")
    assert recorder.poll("1") == ["1"]
    assert caplog.text.count("scontrol release 1") == 1 and slurm.cancelled == []


def test_a_second_job_for_a_file(slurm: FakeSlurm, tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").add(_job("m.pth"), "12", "12.log")
    recorder = Recorder(tmp_path / "ledger")
    with pytest.raises(WorkflowError, match="did not say"):
        recorder.executor._still_running(_job("m.pth"), "")
    slurm.says("squeue", "12|RUNNING")
    assert recorder.executor._still_running(_job("m.pth"), "") == ("12", "12.log")
    assert recorder.executor._still_running(_job("other.pth"), "") is None
    with pytest.raises(WorkflowError, match="scancel 12"):
        recorder.executor._still_running(_job("m.pth", digest="b"), "")
    slurm.says("squeue", "12|FAILED")
    assert recorder.executor._still_running(_job("m.pth"), "") is None
    assert not list((tmp_path / "ledger").glob("*.json"))


def test_notes_on_ended_jobs_go(slurm: FakeSlurm, tmp_path: Path) -> None:
    for number in ("12", "13", "14"):
        Ledger(tmp_path / "ledger").add(_job(f"{number}.pth"), number, f"{number}.log")
    executor = Recorder(tmp_path / "ledger").executor
    executor._forget_ended_jobs()
    assert sorted(executor._ledger.left()) == ["12", "13", "14"], "nothing answered"
    slurm.says("squeue", "12|RUNNING\n13|COMPLETED")
    executor._forget_ended_jobs()
    assert executor._ledger.left() == ["12"]


def test_submissions_wait_for_slurm(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executor = Recorder(tmp_path / "ledger").executor
    slurm.says("scontrol", "Slurmctld(primary) at login is UP")
    executor._wait_for_slurm()
    assert not caplog.records
    slurm.silent("scontrol")
    monkeypatch.setattr("snakemake_executor_plugin_ltslurm.RETRY_SECONDS", 0.2)
    threading.Timer(0.5, executor._stopping.set).start()
    with pytest.raises(_Stopped):
        executor._wait_for_slurm()
    assert len(caplog.records) >= 2


# ---- limits of a real cluster ----------------------------------------------------------------------------------------

NODES = "8:00:00|64000+\n8:00:00|128000"


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        (NODES, Limits(480, 128000)),
        ("2-12:30:00|5", Limits(3630, 5)),
        ("30:00|5", Limits(30, 5)),
        ("infinite|5", Limits(None, 5)),
    ],
)
def test_what_a_partition_allows(slurm: FakeSlurm, text: str, limits: Limits) -> None:
    slurm.says("sinfo", text)
    assert Partitions().limits("gpu") == limits


def test_growing_requests_stay_within_the_partition(slurm: FakeSlurm) -> None:
    """A request beyond MaxTime waits for ever."""
    job = _job("m.pth", runtime=1440, mem_mb=64000)
    assert Partitions().cap(job, "gpu") == (job, []), "Slurm does not say"
    slurm.says("sinfo", NODES)
    capped, said = Partitions().cap(job, "gpu")
    assert dict(capped.resources) == {"runtime": 480, "mem_mb": 64000} and capped.name == "base"
    assert said == ["runtime: 480 minutes instead of 1440, which partition gpu does not allow"]


def test_jobs_without_a_gpu_have_a_partition_of_their_own(slurm: FakeSlurm, tmp_path: Path) -> None:
    executor = Recorder(tmp_path / "ledger").executor
    cpu, gpu = (_job("m", slurm_partition="gpu", **more) for more in ({}, {"gres": "gpu:1"}))
    assert executor.get_partition_arg(cpu) == executor.get_partition_arg(gpu) == " -p gpu"
    executor.workflow.executor_settings.cpu_partition = "small"
    assert executor.get_partition_arg(cpu) == " -p small" and executor.get_partition_arg(gpu) == " -p gpu"


FULL = "sbatch: error: {}\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit"


@pytest.mark.parametrize(
    ("said", "later", "unclear"),
    [
        (FULL.format("QOSMaxSubmitJobPerUserLimit"), True, False),
        (FULL.format("AssocMaxSubmitJobLimit"), True, False),
        (FULL.format("AssocGrpSubmitJobsLimit"), True, False),
        ("sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job", True, False),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True, True),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            True,
            True,
        ),
        (FULL.format("QOSMinGRES"), False, False),
        ("sbatch: error: invalid partition specified: gpux", False, False),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", False, False),
    ],
)
def test_refusals_of_sbatch(slurm: FakeSlurm, said: str, later: bool, unclear: bool) -> None:
    slurm.does("sbatch", f"cat >&2 <<'END'\n{said}\nEND\nexit 1")
    answer = submit("sbatch", None)
    assert (answer.number, answer.later, answer.unclear) == (None, later, unclear)
    assert answer.why and "sbatch" not in answer.why


def _submitting(slurm: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr("snakemake_executor_plugin_ltslurm.RETRY_SECONDS", 0.1)
    monkeypatch.setattr("snakemake_executor_plugin_ltslurm.LOST_SECONDS", 0)
    slurm.says("scontrol", "Slurmctld(primary) at login is UP")
    return Recorder(folder / "ledger")


def _refuse_first(slurm: FakeSlurm, times: int, said: str) -> None:
    """Let sbatch refuse so many jobs, and take the others as 21, 22 ..."""
    count = f"echo x >> {slurm.folder}/asked; n=$(wc -l < {slurm.folder}/asked)"
    slurm.does(
        "sbatch", f"{count}; if [ $n -le {times} ]; then echo '{said}' >&2; exit 1; fi; echo $((20 + n - {times}))"
    )


def test_a_submit_limit_is_waited_for_and_costs_no_attempt(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    _refuse_first(slurm, 3, "sbatch: error: QOSMaxSubmitJobPerUserLimit")
    recorder.executor.run_job(_job("m.pth", slurm_partition="gpu"))
    assert recorder.submitted == ["21"] and recorder.said == []
    assert caplog.text.count("QOSMaxSubmitJobPerUserLimit") == 1, "said once"


POLICY = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user size)"


@pytest.mark.parametrize(
    ("said", "ours", "submitted"),
    [
        (POLICY, {"20"}, ["21"]),
        (POLICY, set(), []),
        (f"sbatch: error: AssocMaxWallDurationPerJobLimit\n{POLICY}", {"20"}, []),
        (f"sbatch: error: QOSMinGRES\n{POLICY}", {"20"}, []),
    ],
)
def test_a_limit_without_a_name_is_waited_for_while_jobs_of_ours_may_end(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, ours: set[str], submitted: list[str]
) -> None:
    """Limits that do not pass are refused at once, whatever else runs."""
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    recorder.executor._ours = ours
    _refuse_first(slurm, 2, said)
    recorder.executor.run_job(_job("m.pth", slurm_partition="gpu"))
    assert recorder.submitted == submitted and bool(recorder.said) == (not submitted)


def test_a_refusal_is_short_and_the_stage_knows(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    recorder.executor.format_job_exec = lambda job: "base64" * 2000
    _refuse_first(slurm, 9, "sbatch: error: invalid partition specified: gpux")
    recorder.executor.run_job(_job("m.pth", slurm_partition="gpux"))
    assert recorder.said == [("Slurm refused base: invalid partition specified: gpux. ", None)]
    assert failure(tmp_path / "stage.log") == (
        f"ltpipe slurm: Slurm refused base: invalid partition specified: gpux.\nsee {tmp_path}/stage.log"
    )


def test_a_job_whose_sbatch_got_no_answer_is_adopted(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    recorder.executor._seen = {"30"}
    # squeue gives no answer at first: that is none, and no reason to submit the job again.
    silence = f"if [ ! -e {slurm.folder}/once ]; then touch {slurm.folder}/once; exit 1; fi"
    slurm.does("squeue", f"{silence}; printf '30|rule_base\\n31|rule_base\\n32|rule_split\\n33|rule_base\\n'")
    _refuse_first(slurm, 1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    recorder.executor.run_job(_job("m.pth", slurm_partition="gpu"))
    assert recorder.submitted == ["31"] and slurm.cancelled == ["33"]
    assert (slurm.folder / "asked").read_text().count("x") == 1, "not submitted again"


def test_a_job_that_cannot_be_noted_is_cancelled(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    _refuse_first(slurm, 0, "")
    (tmp_path / "ledger").write_text("a file where the folder should be")
    recorder.executor.run_job(_job("m.pth", slurm_partition="gpu"))
    assert slurm.cancelled == ["21"] and recorder.submitted == []
    assert "could not be noted" in recorder.said[0][0]


def test_ctrl_c_stops_submissions_first_and_leaves_no_job(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    monkeypatch.setattr("snakemake_executor_plugin_slurm.Executor.shutdown", lambda self: None)
    executor, go, asked = recorder.executor, slurm.folder / "go", slurm.folder / "asked"
    executor.active_jobs, executor.lock = [], threading.Lock()
    slurm.does("sbatch", f"echo $$ >> {asked}; until [ -e {go} ]; do sleep 0.05; done; echo $$")
    for number in range(9):
        executor._job_submission_executor.submit(executor.run_job, _job(f"{number}.pth", slurm_partition="gpu"))
    while not asked.exists() or len(asked.read_text().split()) < 2:
        time.sleep(0.01)
    stopping = threading.Thread(target=executor.cancel)
    stopping.start()
    assert executor._stopping.wait(60)
    go.touch()
    stopping.join(60)
    assert len(asked.read_text().split()) == 2, "two at a time: those are still taken, and no other"
    assert sorted(slurm.cancelled) == sorted([*asked.read_text().split(), "--name=run"]) and recorder.said == []


def test_sigterm_is_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakemake_executor_plugin_slurm.Executor.run_jobs", lambda self, jobs: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        Recorder(tmp_path / "ledger").executor.run_jobs([])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("why", "says"),
    [
        ("PartitionTimeLimit", "lower its runtime"),
        ("QOSMinGRES", "ltslurm-cpu-partition"),
        ("QOSMaxWallDurationPerJobLimit", "lower its runtime"),
        ("InvalidAccount", "slurm_account"),
        ("JobHeldAdmin", "an administrator has to release it"),
    ],
)
def test_a_job_that_can_never_start_says_so_once(
    slurm: FakeSlurm, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str, says: str
) -> None:
    recorder = Recorder(tmp_path / "ledger")
    slurm.says("squeue", f"1|PENDING|{why}")
    assert recorder.poll("1") == recorder.poll("1") == ["1"]
    assert caplog.text.count("Slurm job 1") == 1 and says in caplog.text and "scontrol release" not in caplog.text


def test_a_job_that_waits_for_its_turn_says_nothing(
    slurm: FakeSlurm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slurm.says(
        "squeue", "1|PENDING|Priority\n2|PENDING|Resources\n3|PENDING|QOSMaxJobsPerUserLimit\n4|PENDING|QOSGrpGRES"
    )
    assert len(Recorder(tmp_path / "ledger").poll("1", "2", "3", "4")) == 4 and not caplog.records


def test_a_waiting_job_with_another_request_is_not_adopted(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = _submitting(slurm, tmp_path, monkeypatch)
    _, request = recorder.executor._request(_job("m.pth", slurm_partition="gpux"))
    recorder.executor._ledger.add(_job("m.pth"), "12", "12.log", request)
    _refuse_first(slurm, 0, "")
    slurm.says("squeue", "12|PENDING|InvalidAccount")
    again = Recorder(tmp_path / "ledger")
    again.executor.run_job(_job("m.pth", slurm_partition="gpux"))
    assert again.submitted == ["12"] and slurm.cancelled == []
    mended = Recorder(tmp_path / "ledger")
    mended.executor.run_job(_job("m.pth", slurm_partition="gpu"))
    assert slurm.cancelled == ["12"] and mended.submitted == ["21"]


@pytest.mark.parametrize(
    "text",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=5.batch. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.0 cgroup.",
        "slurmstepd-node1: error: Exceeded job memory limit",
    ],
)
def test_out_of_memory_is_called_so(slurm: FakeSlurm, tmp_path: Path, text: str) -> None:
    log = tmp_path / "5.log"
    log.write_text(f"epoch 1\n{text}\nTraceback")
    assert out_of_memory("5", log)
    log.write_text("epoch 1\nTraceback")
    assert not out_of_memory("5", log)
    slurm.says("sacct", "FAILED\nFAILED\nOUT_OF_MEMORY")
    assert out_of_memory("5", log), "only the inner step says it"


def test_status_knows_why_a_job_was_killed(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.does("squeue", "echo '1|FAILED|NonZeroExitCode'")
    slurm.says("sacct", "FAILED\nOUT_OF_MEMORY")
    (tmp_path / "stage.log").write_text("Iter(train) [ 10/20]\n")
    recorder = Recorder(tmp_path / "ledger")
    assert recorder.poll("1") == []
    assert "OUT_OF_MEMORY, out of memory; the next attempt gets more" in recorder.said[0][0]
    found = failure(tmp_path / "stage.log")
    assert found is not None and found.startswith("ltpipe slurm: Slurm job 1 ended: OUT_OF_MEMORY")

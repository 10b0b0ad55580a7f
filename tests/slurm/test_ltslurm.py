"""The executor ``ltslurm`` with a Slurm of shell scripts: what it makes of every answer and of none."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_ltslurm import RETRY_SECONDS, Executor, ExecutorSettings
from snakemake_executor_plugin_ltslurm.ledger import Ledger
from snakemake_executor_plugin_ltslurm.states import FORGOTTEN_SECONDS, GRACE_SECONDS, Watch, answers, job_states


class FakeSlurm:
    """Commands on PATH that print what a test says; a command without an answer fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("squeue", "sacct", "scontrol"):
            self.silent(name)
        self._write("scancel", f'echo "$@" >> {folder}/cancelled\n')

    def says(self, name: str, text: str) -> None:
        """Let a command print a text."""
        self._write(name, f"cat <<'END'\n{text}\nEND\n")

    def silent(self, name: str) -> None:
        """Let a command fail."""
        self._write(name, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")

    @property
    def cancelled(self) -> list[str]:
        """Ids given to ``scancel``."""
        file = self.folder / "cancelled"
        return file.read_text().split() if file.exists() else []

    def _write(self, name: str, body: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{body}")
        file.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return FakeSlurm(folder)


def test_squeue_answers(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "1|RUNNING\n2|COMPLETED\n3|FAILED\n7_1|PENDING")
    assert job_states(["1", "2", "7_1"]) == {"1": "RUNNING", "2": "COMPLETED", "7_1": "PENDING"}


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
    assert job_states(["1"]) == {"1": state}


def test_sacct_knows_what_slurmctld_forgot(slurm: FakeSlurm) -> None:
    slurm.says("squeue", "1|RUNNING")
    slurm.says("sacct", "2|CANCELLED by 0\n4|COMPLETED\n5|CANCELLED+")
    assert job_states(["1", "2", "5"]) == {"1": "RUNNING", "2": "CANCELLED", "5": "CANCELLED"}


def test_sacct_alone(slurm: FakeSlurm) -> None:
    slurm.says("sacct", "1|TIMEOUT")
    assert job_states(["1", "2"]) == {"1": "TIMEOUT"}


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
        rule=rule, input=["split.json"], output=[output], params=[digest], resources=resources, is_group=lambda: False
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
        executor._ledger, executor._watch, executor._held = Ledger(folder), Watch(), set()
        executor.logger = logging.getLogger("test")
        executor.status_rate_limiter = _NoLimit()
        executor._stopping = threading.Event()
        executor._changed, executor._next_seconds_between_status_checks = time.monotonic(), 2
        settings = ExecutorSettings(status_command=None, init_seconds_before_status_checks=10)
        executor.workflow = SimpleNamespace(executor_settings=settings)
        self.said: list[tuple[str, str]] = []
        executor.report_job_success = lambda job: self.said.append(("ok", job.external_jobid))
        executor.report_job_error = lambda job, msg=None, **_: self.said.append((msg, job.external_jobid))
        self.executor = executor

    def poll(self, *numbers: str) -> list[str]:
        """Ids that are watched further."""
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
    assert recorder.executor.next_seconds_between_status_checks == RETRY_SECONDS
    slurm.says("squeue", "1|RUNNING\n2|COMPLETED\n3|CANCELLED")
    assert recorder.poll("1", "2", "3") == ["1"]
    assert recorder.said[0] == ("ok", "2") and recorder.said[1][1] == "3" and "CANCELLED" in recorder.said[1][0]
    assert recorder.executor.next_seconds_between_status_checks == 10
    waits = []
    for minutes in (0.5, 2, 60):
        recorder.executor._changed -= 60 * minutes
        assert recorder.poll("1") == ["1"]
        waits.append(round(recorder.executor.next_seconds_between_status_checks))
    assert waits == [10, 38, 60]
    slurm.says("squeue", "1|COMPLETED")
    assert recorder.poll("1") == [] and recorder.executor.next_seconds_between_status_checks == 2


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
        recorder.executor._still_running(_job("m.pth"))
    slurm.says("squeue", "12|RUNNING")
    assert recorder.executor._still_running(_job("m.pth")) == ("12", "12.log")
    assert recorder.executor._still_running(_job("other.pth")) is None
    with pytest.raises(WorkflowError, match="scancel 12"):
        recorder.executor._still_running(_job("m.pth", digest="b"))
    slurm.says("squeue", "12|FAILED")
    assert recorder.executor._still_running(_job("m.pth")) is None
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
    with pytest.raises(WorkflowError, match="did not answer"):
        executor._wait_for_slurm()
    assert len(caplog.records) >= 2

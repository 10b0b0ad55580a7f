"""Ordinary mishaps of a cluster, on a real Slurm; the stock executor plugin 2.8.0 waits for ever in the first five."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.small_run import Run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
Start = Callable[..., Cluster]


def test_default_settings_without_accounting(start_cluster: Start, tmp_path: Path) -> None:
    run = Run(tmp_path, start_cluster(), seconds=0)
    run.start("--default-resources", "slurm_account=nobody")
    assert run.wait() == 0, run.output
    assert run.complete() and len(run.attempts) == 1


def test_slurmctld_is_away_at_a_poll(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=6)
    run.start()
    run.until_running()
    cluster.end("slurmctld")
    wait_for(lambda: "Slurm did not answer; will ask again" in run.output, 60, "notice")
    time.sleep(10)
    cluster.begin("slurmctld")
    assert run.wait() == 0, run.output
    assert run.complete() and len(run.attempts) == 1


def test_slurmctld_crashed_and_forgot_that_the_job_had_started(start_cluster: Start, tmp_path: Path) -> None:
    """It starts the job again, finds it running, drains its node, and holds the job: nobody would release it."""
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=6)
    run.start()
    job = run.until_running()
    cluster.kill("slurmctld")
    wait_for(lambda: "Slurm did not answer; will ask again" in run.output, 60, "notice")
    time.sleep(10)
    cluster.begin("slurmctld")
    assert run.wait(240) == 0, run.output
    assert run.complete() and run.attempts[0] == job
    assert cluster.jobs("PENDING") == []


def test_scancel_is_a_failure_that_is_retried(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=600)
    run.start()
    cluster.ask("scancel", run.until_running())
    assert run.wait() == 0, run.output
    assert "CANCELLED, cancelled, by scancel or an administrator" in run.output
    assert run.complete() and len(run.attempts) == 2


def test_preempted_and_cancelled(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster(nodes=1, cpus=1)
    run = Run(tmp_path, cluster, seconds=600)
    run.start(partition="lowcancel")
    run.until_running()
    cluster.ask("sbatch", "--partition=cpu", "--mem=100", "--output=/dev/null", "--wrap=sleep 1")
    assert run.wait() == 0, run.output
    assert "PREEMPTED" in run.output
    assert run.complete() and len(run.attempts) == 2


def test_preempted_and_requeued(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster(nodes=1, cpus=1)
    run = Run(tmp_path, cluster, seconds=600)
    run.start(partition="lowrequeue")
    job = run.until_running()
    cluster.ask("sbatch", "--partition=cpu", "--mem=100", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: job in cluster.jobs("PENDING"), 60, "requeue")
    # Slurm starts a requeued job after two minutes.
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert run.wait() == 0, run.output
    assert run.complete() and run.attempts == [job, job]


def test_slurmdbd_is_away(start_cluster: Start, tmp_path: Path) -> None:
    """The states come from slurmctld; what scancel did is seen all the same."""
    cluster = start_cluster(accounting=True)
    run = Run(tmp_path, cluster, seconds=600)
    run.start()
    job = run.until_running()
    cluster.kill("slurmdbd")
    time.sleep(5)
    cluster.ask("scancel", job)
    assert run.wait() == 0, run.output
    assert run.complete() and len(run.attempts) == 2


def test_requeued_job_is_followed(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=600)
    run.start()
    job = run.until_running()
    cluster.ask("scontrol", "requeue", job)
    wait_for(lambda: job in cluster.jobs("PENDING"), 20, "requeue")
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert run.wait() == 0, run.output
    assert run.attempts == [job, job]


def test_a_killed_snakemake_finds_its_job_again(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=600)
    run.start()
    job = run.until_running()
    run.kill()
    run.start("--unlock")
    assert run.wait() == 0, run.output
    run.start()
    notice = f"Slurm job {job} of an earlier run still makes first.txt"
    wait_for(lambda: notice in run.output, 120, "notice")
    (tmp_path / "release").touch()
    assert run.wait() == 0, run.output
    assert run.complete() and run.attempts == [job]


def test_another_job_for_the_same_file_is_refused(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=600)
    run.start()
    job = run.until_running()
    run.kill()
    file = tmp_path / "Snakefile"
    file.write_text(file.read_text().replace('digest="one"', 'digest="two"'))
    run.start("--unlock")
    run.wait()
    run.start()
    assert run.wait() != 0
    assert f"scancel {job}" in run.output
    assert run.attempts == [job] and not run.complete()


def test_a_job_that_ended_without_snakemake_is_not_repeated(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=8)
    run.start()
    job = run.until_running()
    run.kill()
    wait_for(lambda: job in cluster.jobs("COMPLETED"), 60, "end of the job")
    run.start("--unlock")
    assert run.wait() == 0, run.output
    run.start()
    assert run.wait() == 0, run.output
    assert run.complete() and run.attempts == [job], run.output

"""What can happen to the job of a stage on a cluster. Snakemake is not started again unless it was killed itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.faults.injections import Case, injection, stopped, tail
from tests.faults.project import Command
from tests.slurm.cluster import Cluster, wait_for

# Of the local cluster: the shipped profile's jobs must fit.
SIZE = {"cpus": 16, "memory": 200000}


def on_cluster(name: str, partition: str = "gpu") -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register an injection for stages that are Slurm jobs."""
    return injection(name, stages=lambda stage: stage.name != "validate", partition=partition)


@contextmanager
def running_job(case: Case) -> Iterator[tuple[Cluster, Command, str]]:
    """Cluster, command and job of a stage that stands still at some moment until the end of the block."""
    cluster = case.project.cluster
    assert cluster is not None
    command, pid, job = stopped(case)
    try:
        yield cluster, command, job
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def follow(case: Case, command: Command) -> None:
    """Wait for Snakemake, which must come through by itself, and find nothing to do afterwards."""
    code = command.wait()
    assert code == 0, f"Snakemake ended with {code}:\n{tail(command.text())}"
    case.again()


def node_of(cluster: Cluster, job: str) -> str:
    """The node on which a job runs."""
    return cluster.ask("squeue", "-h", f"--jobs={job}", "-o", "%N").strip()


def start_requeued(cluster: Cluster, job: str) -> None:
    """Start a requeued job at once; Slurm would wait for two minutes."""
    wait_for(lambda: job in cluster.jobs("PENDING"), 90, "requeue")
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def take_place_of(cluster: Cluster, job: str) -> None:
    """Submit a short job with a higher priority that needs the whole node."""
    node = node_of(cluster, job)
    options = [f"--nodelist={node}", "--exclusive", "--mem=100", "--output=/dev/null"]
    assert cluster.ask("sbatch", "--partition=cpu", *options, "--wrap=sleep 1")


@on_cluster("scancel")
def cancelled(case: Case) -> None:
    with running_job(case) as (cluster, command, job):
        cluster.ask("scancel", job)
    follow(case, command)


@on_cluster("scancel --signal=KILL --full")
def killed(case: Case) -> None:
    with running_job(case) as (cluster, command, job):
        cluster.ask("scancel", "--signal=KILL", "--full", job)
    follow(case, command)


@on_cluster("scontrol requeue")
def requeued(case: Case) -> None:
    with running_job(case) as (cluster, command, job):
        cluster.ask("scontrol", "requeue", job)
    start_requeued(cluster, job)
    follow(case, command)


@on_cluster("preempted, cancelled", partition="lowcancel")
def preempted_and_cancelled(case: Case) -> None:
    with running_job(case) as (cluster, command, job):
        take_place_of(cluster, job)
    follow(case, command)


@on_cluster("preempted, requeued", partition="lowrequeue")
def preempted_and_requeued(case: Case) -> None:
    with running_job(case) as (cluster, command, job):
        take_place_of(cluster, job)
    start_requeued(cluster, job)
    follow(case, command)


@on_cluster("slurmd killed and started")
def slurmd_restarted(case: Case) -> None:
    with running_job(case) as (cluster, command, job):
        node = node_of(cluster, job)
        cluster.kill(node)
        time.sleep(float(case.random.uniform(0, 2)))
    time.sleep(float(case.random.uniform(0, 2)))
    cluster.begin(node)
    follow(case, command)


@on_cluster("slurmctld restarted")
def slurmctld_restarted(case: Case) -> None:
    with running_job(case) as (cluster, command, _):
        cluster.end("slurmctld")
        time.sleep(float(case.random.uniform(0, 3)))
    time.sleep(float(case.random.uniform(0, 3)))
    cluster.begin("slurmctld")
    follow(case, command)


@on_cluster("node lost, stage goes on")
def node_lost(case: Case) -> None:
    """Slurm gives the node up and requeues the job; the stage of the first attempt wakes up beside the second."""
    with running_job(case) as (cluster, command, job):
        node = node_of(cluster, job)
        cluster.kill(node)
        start_requeued(cluster, job)
        wait_for(lambda: job in cluster.jobs("RUNNING"), 60, "the second attempt")
        time.sleep(float(case.random.uniform(0, 10)))
    cluster.begin(node)
    follow(case, command)


@on_cluster("Snakemake killed, job goes on")
def snakemake_killed(case: Case) -> None:
    with running_job(case) as (_, command, _):
        os.kill(command.pid, signal.SIGKILL)
    case.again()

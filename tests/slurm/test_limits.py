"""What administrators set on a real cluster, on a real Slurm: limits, and what is left behind after a stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.workspace import Workspace
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.small_run import Run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
Start = Callable[..., Cluster]
PHASES = 14
MANY = """
rule all:
    input: expand("{number}.txt", number=range(40))

rule one:
    output: "{number}.txt"
    resources: mem_mb=400, runtime=5
    shell: "sleep 600; echo x > {output}"
"""


def test_fourteen_phases_under_a_submit_limit_and_a_short_partition(start_cluster: Start, tmp_path: Path) -> None:
    """All trainings get a GPU and no more time than the partition allows; refused submissions cost no attempt."""
    cluster = start_cluster(cpus=16, memory=200000, accounting=True, max_submit=3, max_time="1:00:00")
    workspace = Workspace(tmp_path / "w", forked=False)
    chain = workspace.folder / "configs" / "experiments" / "chain.yaml"
    chain.write_text(
        chain.read_text().replace("base_classes: 12, step: 12", f"base_classes: {36 - 2 * PHASES}, step: 2")
    )
    asked = ("--default-resources", "slurm_partition=gpu", "slurm_account=lab")
    done = workspace.on_slurm(
        cluster.environment, "all_lst", "--config", "experiments=chain", "--retries", "0", *asked, seconds=1400
    )
    assert done.returncode == 0, done.stdout[-4000:]
    listed = cluster.ask("squeue", "-h", "--states=all", "-o", "%k|%T|%b|%l").splitlines()
    trainings = sorted(line for line in listed if "rule_lst_phase" in line)
    assert trainings == sorted(
        f"rule_lst_phase_{phase}_wildcards_chain|COMPLETED|gres:gpu:1|1:00:00" for phase in range(1, PHASES + 1)
    )
    assert 1 <= done.stdout.count("Slurm takes no more jobs now (AssocMaxSubmitJobLimit") < len(listed)
    assert "runtime: 60 minutes instead of 720, which partition gpu does not allow" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 5000, "no command in base64"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_nothing_is_left_after_a_stop_during_submission(start_cluster: Start, tmp_path: Path, number: int) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=0)
    (tmp_path / "Snakefile").write_text(MANY)
    run.start("all", "--jobs", "60")
    wait_for(lambda: "has been submitted" in run.output, 60, f"first submission; {run.output}")
    assert run.process is not None
    run.process.send_signal(number)
    assert run.wait(60) == 1, run.output
    time.sleep(3)
    alive = cluster.jobs("PENDING") + cluster.jobs("RUNNING") + cluster.jobs("CONFIGURING")
    assert alive == [], run.output
    assert run.output.count("has been submitted") < 40, "submission stopped"


def test_a_job_that_can_never_start_says_why(start_cluster: Start, tmp_path: Path) -> None:
    """Such a job was waited for in silence; the next run asks for something else and does not adopt it."""
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=0)
    run.start("--set-resources", "first:constraint=nowhere")
    wait_for(lambda: "refused" in run.output or "does not pass by itself" in run.output, 90, f"a word; {run.output}")
    run.kill()
    run.start("--unlock")
    assert run.wait() == 0, run.output
    run.start()
    assert run.wait() == 0, run.output
    assert run.complete() and len(run.attempts) == 1


def test_out_of_memory_is_said_and_mended(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster()
    run = Run(tmp_path, cluster, seconds=0)
    grow = "python -c 'x = bytearray(600000000); import time; time.sleep(30)'"
    text = (tmp_path / "Snakefile").read_text()
    text = text.replace("rule first:\n", "rule first:\n    log: 'first.log'\n")
    (tmp_path / "Snakefile").write_text(
        text.replace("mem_mb=400", "mem_mb=lambda w, attempt: 400 if attempt == 1 else 2000").replace(
            '"echo x > {output}"', f'"{grow}; echo x > {{output}}"'
        )
    )
    run.start()
    assert run.wait(200) == 0, run.output
    assert "OUT_OF_MEMORY, out of memory; the next attempt gets more" in run.output
    assert run.complete() and len(run.attempts) == 2

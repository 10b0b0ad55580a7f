"""The user's command on a real Slurm: the shipped profile and workflow, with a stub for the stages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.workspace import ROOT, Workspace
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
Start = Callable[..., Cluster]
QUESTION = "from ltpipe.run.time_limit import slurm_seconds_left; print(slurm_seconds_left())"
# The first attempt of `base` leaves its resume state and fails; each says how much time it has.
FAIL_ONCE = f"""if [ "$1" = base ]; then
  "{sys.executable}" -c '{QUESTION}' >> left.txt
  if [ ! -e results/chain/base/work/a ]; then
    mkdir -p results/chain/base/work; touch results/chain/base/work/a; exit 1
  fi
fi
"""


@pytest.mark.parametrize("accounting", [False, True], ids=["squeue-only", "slurmdbd"])
def test_phase_1_with_a_retry(start_cluster: Start, tmp_path: Path, accounting: bool) -> None:
    cluster = start_cluster(cpus=16, memory=200000, accounting=accounting)
    workspace = Workspace(tmp_path / "w", forked=False)
    command = workspace.folder / "bin" / "ltpipe"
    command.write_text(command.read_text().replace("exec", FAIL_ONCE + "exec"))
    wait = ("--ltslurm-init-seconds-before-status-checks", "3")
    done = workspace.on_slurm(cluster.environment, "phase_1", "--config", "experiments=chain", *wait, seconds=800)
    assert done.returncode == 0, done.stdout[-4000:]
    assert (workspace.folder / "results/chain/lst/phase1/model.pth").exists()
    assert not (workspace.folder / "results/chain/lst/phase2").exists()
    listed = cluster.ask("squeue", "-h", "--states=all", "-o", "%k|%T|%P|%b|%m|%l").splitlines()
    base = sorted((line for line in listed if line.startswith("rule_base")), key=lambda line: "COMPLETED" in line)
    assert base == [
        "rule_base_wildcards_chain|FAILED|gpu|gres:gpu:1|32000M|12:00:00",
        "rule_base_wildcards_chain|COMPLETED|gpu|gres:gpu:1|62.50G|1-00:00:00",
    ], "the retry asks for more memory and time"
    first, second = ((workspace.folder / "left.txt").read_text()).split()
    assert 0 <= 12 * 3600 - float(first) < 120 and 0 <= 24 * 3600 - float(second) < 120, "inside the rule's shell, too"
    assert sum("rule_split" in line for line in listed) == 2


def test_a_job_knows_how_much_time_is_left(start_cluster: Start) -> None:
    cluster = start_cluster()
    command = ["srun", "--time=5", "--export=ALL", sys.executable, "-c", QUESTION]
    answer = subprocess.run(
        command, env={**cluster.environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert 270 <= float(answer.stdout) <= 300, answer

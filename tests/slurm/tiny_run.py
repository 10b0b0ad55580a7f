"""The experiment ``tiny`` with its real stages, on a local Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.workspace import ROOT, Workspace
from tests.slurm.cluster import Cluster


class Project(Workspace):
    """The experiment ``tiny`` on a cluster; what its base training needs is there.

    Args:
        folder: A new folder.
        cluster: Where the jobs run.
        iterations: Of the base training.
        processes: Processes per node of each training, which would be the number of GPUs if there were any.
    """

    def __init__(self, folder: Path, cluster: Cluster, iterations: int = 2, processes: int = 1) -> None:
        super().__init__(folder, stub=False, forked=False)
        self.cluster = cluster
        self.running: list[subprocess.Popen[str]] = []
        file = folder / "configs/experiments/tiny.yaml"
        text = file.read_text()
        schedule = "{iterations: 2, batch_size: 2, warmup_iterations: 0}"
        assert text.count(schedule) == 1
        file.write_text(text.replace(schedule, f"{{iterations: {iterations}, batch_size: 4, warmup_iterations: 0}}"))
        command = folder / "bin" / "ltpipe"
        several = f'case "$1" in base|lst) set -- "$@" --processes {processes};; esac\n'
        command.write_text(command.read_text().replace("exec", several + "exec"))
        for stage in ("toy-data", "validate", "index", "split"):
            self.ltpipe(stage, "--experiment", "configs/experiments/tiny.yaml")

    def start(self, resources: Sequence[str], *options: str, target: str = "all_base") -> subprocess.Popen[str]:
        """Start ``snakemake --profile slurm``.

        Args:
            resources: Resources of rules, as ``--set-resources`` takes them.
            *options: More options.
            target: What to make.
        """
        process = subprocess.Popen(
            ["snakemake", "--profile", "slurm", target, "--config", "experiments=tiny", "--latency-wait", "20"]
            + ["--ltslurm-init-seconds-before-status-checks", "3", *options]
            + ["--set-resources", "base:runtime=60", *resources],  # replaces the profile's, with their limits
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.running.append(process)
        return process

    @property
    def environment(self) -> dict[str, str]:
        """Environment of Snakemake and its jobs."""
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), self.cluster.environment["PATH"]]
        return {**self.cluster.environment, "PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT)}

    def stop(self) -> None:
        """End what a failed test has left running."""
        for process in self.running:
            process.kill()
            process.wait()

    def complete(self, resources: Sequence[str]) -> list[list[str]]:
        """Run until all is done; return id, state and nodes of the Slurm jobs of rule ``base``."""
        output, _ = self.start(resources).communicate(timeout=600)
        assert "steps (100%) done" in output, output[-4000:] + self.log
        return self.jobs()

    def jobs(self, rule: str = "base") -> list[list[str]]:
        """Id, state and nodes of the Slurm jobs of a rule."""
        return sorted([number, state, nodes] for number, state, nodes, name in self._listed() if name == rule)

    def rules(self) -> dict[int, str]:
        """Rules by the id of their Slurm job, in the order of submission; Slurm forgets old jobs."""
        return {int(number): name for number, _, _, name in sorted(self._listed(), key=lambda row: int(row[0]))}

    def _listed(self) -> list[list[str]]:
        """Id, state, nodes and rule of all jobs."""
        listed = self.cluster.ask("squeue", "-h", "--states=all", "-o", "%A|%T|%N|%k").splitlines()
        rows = (line.split("|") for line in listed)
        return [[*row[:3], row[3].removeprefix("rule_").partition("_wildcards")[0]] for row in rows]

    @property
    def log(self) -> str:
        """What the training has said."""
        file = self.folder / "logs/tiny/base.log"
        return file.read_text() if file.exists() else ""

    @property
    def record(self) -> dict[str, object]:
        """Record of the base training."""
        return self.record_of("base")

    def record_of(self, stage: str) -> dict[str, object]:
        """Record of a stage, named by its folder."""
        content: dict[str, object] = json.loads((self.folder / "results/tiny" / stage / "stage.json").read_text())
        return content

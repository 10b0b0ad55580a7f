"""A tiny workflow and its Snakemake process, on a local Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
# `first` takes SECONDS at its first attempt, or until the file `release` is there; attempts.txt has a line for each.
SNAKEFILE = """
rule second:
    input: "first.txt"
    output: "second.txt"
    resources: mem_mb=400, runtime=5
    shell: "cp {input} {output}"

rule first:
    output: "first.txt"
    params: digest="one"
    resources: mem_mb=400, runtime=5
    shell:
        "echo $SLURM_JOB_ID >> attempts.txt; "
        "if [ $(wc -l < attempts.txt) = 1 ]; then for i in $(seq SECONDS); do [ -e release ] || sleep 1; done; fi; "
        "echo x > {output}"
"""


class Run:
    """A folder with the workflow, in which Snakemake is started any number of times.

    Args:
        folder: A new folder.
        cluster: Where the jobs run.
        seconds: How long the first attempt of rule ``first`` takes.
    """

    def __init__(self, folder: Path, cluster: Cluster, seconds: int) -> None:
        self.folder, self.cluster = folder, cluster
        (folder / "Snakefile").write_text(SNAKEFILE.replace("SECONDS", str(seconds)))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, partition: str = "cpu") -> None:
        """Start Snakemake in the background."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        if "--unlock" not in arguments:
            command += ["--executor", "ltslurm", "--jobs", "9", "--retries", "1", "--rerun-incomplete"]
            command += ["--latency-wait", "20", "--ltslurm-init-seconds-before-status-checks", "2"]
            command += ["--default-resources", f"slurm_partition={partition}"]
        with open(self.folder / "output.txt", "ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.cluster.environment, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill Snakemake; its job goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        """All that Snakemake has said."""
        return (self.folder / "output.txt").read_text()

    @property
    def attempts(self) -> list[str]:
        """Slurm ids of the attempts of rule ``first``."""
        file = self.folder / "attempts.txt"
        return file.read_text().split() if file.exists() else []

    def wait(self, seconds: float = 150) -> int:
        """Wait for Snakemake's end; return its exit code. It is killed when that takes too long."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.output[-3000:]}") from None

    def until_running(self) -> str:
        """Wait until the first attempt works; return its Slurm id."""
        wait_for(lambda: bool(self.attempts), 90, f"start of the first job; {self.output[-1500:]}")
        time.sleep(0.5)
        return self.attempts[0]

    def complete(self) -> bool:
        """Whether the last file is there."""
        return os.path.exists(self.folder / "second.txt")

"""The tiny project under Snakemake, in a folder that is put back to its finished state before every fault."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ltpipe.config.loading import load_experiment
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_keys
from ltpipe.run.cores import VARIABLE
from ltpipe.run.records import read_json
from tests.helpers.commands import ROOT, Command, answers, program, server
from tests.helpers.tiny_project import EXPERIMENT, write_project
from tests.slurm.cluster import Cluster

FILE = "configs/experiments/tiny.yaml"
CHANGING = ("results", "logs", ".snakemake", "data")
# Of a record: when, where and how fast it was made, and what the data looked like before.
VOLATILE = ("started", "seconds", "peak_memory_mib", "remarks", "place")
# The report shows when each stage ran, how long and in how much memory.
SHOWN_TIMES = re.compile(rb"\d+\.\d s|\d+\.\d GiB|\d+ min|\d{4}-\d\d-\d\d[T ][\d:.]+([+-]\d\d:\d\d|Z)?")
# What the disturbed runs pretend to have: two loader processes in each of two processes, four in one.
MORE_CORES = "8"
FLAGS = {"split": "--phase", "distill": "--phase", "lst": "--phase", "calibrate": "--name", "evaluate": "--checkpoint"}
Key = str | int | None


@dataclass(frozen=True)
class Stage:
    """A stage of the tiny project.

    Attributes:
        name: Its name.
        key: Phase, calibrator or checkpoint.
    """

    name: str
    key: Key

    @property
    def line(self) -> str:
        """Its command line, as :mod:`trigger` compares it."""
        key = 0 if (self.name, self.key) == ("split", None) else self.key
        return f"{self.name} {FILE}" + (f" {FLAGS[self.name]} {key}" if self.name in FLAGS else "")

    @property
    def training(self) -> bool:
        """Whether torchrun can run it."""
        return self.name in ("base", "lst")


def children(pid: int) -> list[int]:
    """Process ids of the children of a process; none if it has ended."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Project:
    """The tiny project, a server that runs its commands, and its finished results.

    Args:
        folder: A new folder.
        cluster: Where the jobs of the disturbed runs go; by default they run here, without Slurm.
    """

    def __init__(self, folder: Path, cluster: Cluster | None = None) -> None:
        self.folder, self.server, self.cluster = folder / "run", folder / "socket", cluster
        self.folder.mkdir(parents=True)
        for name in ("workflow", "configs"):
            shutil.copytree(ROOT / name, self.folder / name)
        shutil.copy(ROOT / "Snakefile", self.folder)
        for profile in ("local", "slurm"):
            (self.folder / profile).symlink_to(Path("workflow/profiles") / profile)
        write_project(self.folder)
        shutil.rmtree(self.folder / "data")
        self._write_experiment()
        # Of its own, so that it is known which commands are this project's; it needs no imports any more.
        self._server = self._command(server(), ["serve", str(self.server)], {}, "server")
        self._wait_for_server()
        (self.folder / "bin").mkdir()
        self._python = self.folder / "bin" / "python"
        for name, word in (("ltpipe", "ltpipe"), ("python", "")):
            script = self.folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {program(self.server, word, **self._run_as())} "$@"\n')
            script.chmod(0o755)
        self.exp = load_experiment(self.folder / FILE)
        self.paths = Paths(self.folder / "results", self.exp)
        self.finished: dict[int, dict[str, str]] = {}
        self.costs: dict[str, tuple[int, float]] = {}

    def _write_experiment(self) -> None:
        whole = json.loads(json.dumps(EXPERIMENT))
        whole["dataset"] |= {
            p: {"annotations": f"data/tiny/{p}.json", "images": f"data/tiny/{p}"} for p in ("train", "val")
        }
        drawn = {"num_classes": 9, "train_images": 24, "val_images": 6, "image_size": 64, "seed": 3}
        whole["dataset"] |= {"format": "coco", "generate": drawn}
        whole["detector"] = {"config": "detector.py"}
        whole["evaluate"]["checkpoints"] = ["phase2", "simcal"]
        (self.folder / FILE).write_text(yaml.safe_dump(whole))
        (self.folder / "configs/pipeline.yaml").write_text("experiments: [tiny]\n")

    def _wait_for_server(self) -> None:
        while not answers(self.server):
            assert children(self._server.pid) or Path(f"/proc/{self._server.pid}").exists(), self._server.text()
            time.sleep(0.01)

    def close(self) -> None:
        """End the server."""
        self.detach_disk()
        self._server.end()

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _run_as(self) -> dict[str, Any]:
        return {"prepare": "tests.faults.trigger", "python": self.folder / "bin" / "python"}

    def _command(self, path: Path, argv: list[str], environment: dict[str, str], output: str) -> Command:
        """Start a command; its environment is that of this process, which pretends two cores, with these changes."""
        search = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        full = {**os.environ, "PATH": search, VARIABLE: "2"} | environment
        return Command(path, argv, self.folder, full, self.folder / f"{output}.txt", **self._run_as())

    def snakemake(self, *targets: str, name: str = "snakemake", **environment: str) -> Command:
        """Start the user's command."""
        argv = ["snakemake", "--profile", "local", *targets]
        if self.finished and self.cluster is not None:
            argv[2:3] = ["slurm", "--latency-wait", "10", "--ltslurm-init-seconds-before-status-checks", "2"]
            path = os.pathsep.join([str(self.folder / "bin"), self.cluster.environment["PATH"]])
            environment |= {**self.cluster.environment, "PATH": path, "PYTHONPATH": str(ROOT)}
        return self._command(self.server, argv, environment, name)

    def submit_to(self, partition: str) -> None:
        """Edit the line of the profile that a user edits."""
        file = self.folder / "workflow/profiles/slurm/config.yaml"
        text, edited = re.subn(r"(?m)^(  slurm_partition:) \w+", rf"\1 {partition}", file.read_text())
        assert edited == 1
        file.write_text(text)

    def ltpipe(self, line: str) -> Command:
        """Start a stage by hand."""
        return self._command(self.server, ["ltpipe", *line.split()], {VARIABLE: MORE_CORES}, "ltpipe")

    # ---- states ------------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> list[Stage]:
        """All stages in the order they run."""
        return [Stage(name, key) for name, key in stage_keys(self.exp)]

    def target(self, stage: Stage) -> str:
        """The file to ask Snakemake for."""
        return str(self.paths.record(stage.name, stage.key).relative_to(self.folder))

    def run_undisturbed(self, processes: int) -> None:
        """Make the results that all others are compared with; note what each stage costs."""
        counts = self.folder / "counts"
        counts.mkdir(exist_ok=True)
        command = self.snakemake("all", FAULT="count", FAULT_FIRED=str(counts), PROCESSES=str(processes))
        if command.wait(900):
            raise AssertionError(command.text())
        for file in counts.iterdir() if processes == 1 else ():
            events, seconds = file.read_text().split()
            self.costs[file.name] = (int(events), float(seconds))
        self.finished[processes] = self.checksums()
        for name in CHANGING:
            shutil.copytree(self.folder / name, self.kept(processes) / name, symlinks=True)
            shutil.rmtree(self.folder / name)

    def adopt(self, other: Project) -> None:
        """Take over the undisturbed runs of another project: results do not depend on the folder they are made in."""
        for processes in other.finished:
            shutil.copytree(other.kept(processes), self.kept(processes), symlinks=True)
        self.finished, self.costs = other.finished, other.costs

    def kept(self, processes: int) -> Path:
        """Where the undisturbed results lie."""
        return self.folder.parent / f"finished{processes}"

    def restore(self, processes: int = 1, *, disk: bool = False) -> None:
        """Go back to the finished state.

        Args:
            processes: Of the trainings.
            disk: Whether the results lie on a file system of their own.
        """
        self.detach_disk()
        if self.cluster is not None:
            self.cluster.repair()
        for name in CHANGING:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if disk:
            (self.folder / "results").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", self.folder / "results"], check=True)
        for name in CHANGING:
            shutil.copytree(self.kept(processes) / name, self.folder / name, symlinks=True, dirs_exist_ok=True)

    def detach_disk(self) -> None:
        """Remove the file system of the results, if there is one."""
        if os.path.ismount(self.folder / "results"):
            subprocess.run(["umount", "--lazy", self.folder / "results"], check=True)

    def remount(self, options: str) -> None:
        """Change the file system of the results."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder / "results"], check=True)

    def record(self, stage: Stage) -> dict[str, Any]:
        """Record of a stage in the undisturbed run."""
        return read_json(self.kept(1) / self.target(stage))

    def outputs(self, stage: Stage) -> list[Path]:
        """Result files of a finished stage; its record comes last."""
        record = self.paths.record(stage.name, stage.key)
        files = [record.parent / name for name in self.record(stage)["outputs"]]
        return [*files, *([self.paths.lock] if stage.name == "validate" else []), record]

    def inputs(self, stage: Stage) -> list[Path]:
        """Files that a finished stage has read and another one wrote."""
        return [self.folder / name for name in self.record(stage)["inputs"] if name.startswith("results/")]

    def delete(self, stage: Stage) -> None:
        """Remove the outputs of a stage, if the undisturbed run has made it: ``all`` does not ask for every one."""
        for file in self.outputs(stage) if self.record(stage) is not None else ():
            file.unlink()

    def end_leftovers(self) -> None:
        """End commands that are still running, whoever started them."""
        for handler in children(self._server.pid):
            for command in children(handler):
                with suppress(ProcessLookupError):
                    os.kill(command, signal.SIGKILL)

    def checksums(self) -> dict[str, str]:
        """Checksums of all results; of records without what differs from run to run."""
        found = {}
        for file in sorted((self.folder / "results").rglob("*")):
            name = str(file.relative_to(self.folder))
            if file.name == "stage.json":
                content = read_json(file) or {}
                content["outputs"] = {k: v for k, v in content.get("outputs", {}).items() if k != "report.html"}
                found |= {f"{name}: {key}": str(value) for key, value in content.items() if key not in VOLATILE}
            elif file.is_file() and file.name != ".lock":
                content = file.read_bytes()
                known = SHOWN_TIMES.sub(b"", content) if file.name == "report.html" else content
                found[name] = hashlib.sha256(known).hexdigest()
        return found

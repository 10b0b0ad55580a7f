"""A folder with the real Snakefile and experiments, in which a stub stands for the command ``ltpipe``.

Commands are forks of the test run's server, unless a cluster starts them or a test asks for a program of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ltpipe.run.cores import VARIABLE
from tests.helpers.commands import ROOT, Command, program, server

EXPERIMENTS = ROOT / "tests" / "workflow" / "experiments"
STUB = ROOT / "tests" / "workflow" / "stub_ltpipe.py"


class Workspace:
    """A copy of the workflow with the experiments ``joint`` and ``chain``; Snakemake runs with a stub for ``ltpipe``.

    Args:
        folder: A new or empty folder.
        stub: Whether the stub stands for the stages; otherwise they are real.
        forked: Whether the stages are forks; otherwise they are programs as users start them.
    """

    def __init__(self, folder: Path, *, stub: bool = True, forked: bool = True) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        for name in ("workflow", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "Snakefile", folder)
        for file in EXPERIMENTS.glob("*.yaml"):
            shutil.copy(file, folder / "configs" / "experiments")
        (folder / "configs" / "pipeline.yaml").write_text("experiments: [joint, chain]\n")
        for profile in ("slurm", "local"):
            (folder / profile).symlink_to(Path("workflow") / "profiles" / profile)
        command = folder / "bin" / "ltpipe"
        command.parent.mkdir()
        own = STUB if stub else "-m ltpipe.cli"
        line = program(server(), "stub" if stub else "ltpipe") if forked else f'"{sys.executable}" {own}'
        command.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        command.chmod(0o755)

    def snakemake(self, *arguments: str, ok: bool = True) -> str:
        """Run Snakemake; return standard output and error together.

        Args:
            *arguments: Its arguments.
            ok: Whether it must succeed; otherwise it must fail.
        """
        return self._forked(["snakemake", *arguments], 0 if ok else 1)

    def on_slurm(
        self, environment: Mapping[str, str], *arguments: str, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Type ``snakemake --profile slurm`` where Slurm's commands are found by this environment."""
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), environment["PATH"]])
        return subprocess.run(
            ["snakemake", "--profile", "slurm", *arguments, "--latency-wait", "20"],
            cwd=self.folder,
            env={**environment, "PATH": path, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )

    def ltpipe(self, *arguments: str, code: int = 0) -> str:
        """Run ``ltpipe``, which must exit with ``code``; return standard output and error together."""
        return self.program(str(self.folder / "bin" / "ltpipe"), *arguments, code=code)

    def program(self, *command: str, code: int = 0) -> str:
        """Run a program, no fork of the server, which must exit with ``code``; return what it prints."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        assert done.returncode == code, done.stdout[-6000:]
        return done.stdout

    def _forked(self, command: list[str], code: int) -> str:
        with tempfile.NamedTemporaryFile() as output:
            running = Command(server(), command, self.folder, self._environment(), Path(output.name))
            found, text = running.wait(1200), running.text()
        assert found == code, text[-6000:]
        return text

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), VARIABLE: "4"}  # two loader processes

    def dry_run(self, *arguments: str) -> dict[str, int]:
        """Return how often each rule would run, targets left out."""
        text = self.snakemake("-n", "--cores", "2", *arguments)
        table = re.search(r"^Job stats:\njob +count\n[- ]+\n(.*?)^total ", text, re.MULTILINE | re.DOTALL)
        if table is None:
            assert "Nothing to be done" in text, text
            return {}
        rows = (line.split() for line in table[1].splitlines())
        return {name: int(count) for name, count in rows if not re.fullmatch(r"all|all_.*|phase_\d+", name)}

    @contextmanager
    def edited(self, file: str, old: str, new: str) -> Iterator[None]:
        """Replace text in a file for a while; its time stamp changes as an editor's save would change it."""
        path = self.folder / file
        before, stat = path.read_text(), path.stat()
        assert before.count(old) == 1, f"{old!r} occurs {before.count(old)} times in {file}"
        path.write_text(before.replace(old, new))
        try:
            yield
        finally:
            path.write_text(before)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

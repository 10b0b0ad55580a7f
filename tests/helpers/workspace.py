"""A folder with the real Snakefile and experiments, in which a stub stands for the command ``ltpipe``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "tests" / "workflow" / "experiments"
STUB = ROOT / "tests" / "workflow" / "stub_ltpipe.py"


class Workspace:
    """A copy of the workflow with the experiments ``joint`` and ``chain``; Snakemake runs with a stub for ``ltpipe``.

    Args:
        folder: A new or empty folder.
        stub: Whether the stub stands for the stages; otherwise they are real.
    """

    def __init__(self, folder: Path, *, stub: bool = True) -> None:
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
        program = f'"{STUB}"' if stub else "-m ltpipe.cli"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        command.chmod(0o755)

    def snakemake(self, *arguments: str, ok: bool = True) -> str:
        """Run Snakemake; return standard output and error together.

        Args:
            *arguments: Its arguments.
            ok: Whether it must succeed; otherwise it must fail.
        """
        return self._run([sys.executable, "-m", "snakemake", *arguments], 0 if ok else 1)

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
        return self._run([str(self.folder / "bin" / "ltpipe"), *arguments], code)

    def _run(self, command: list[str], code: int) -> str:
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "LTPIPE_CORES": "4"},  # two loader processes
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        assert done.returncode == code, done.stdout[-6000:]
        return done.stdout

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

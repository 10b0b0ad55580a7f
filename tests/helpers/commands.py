"""Commands in processes of their own without the seconds of imports: forks of one server of the whole test run."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ltpipe.run.cores import VARIABLE
from tests.helpers.fork_client import start

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = sys.executable  # tests may put another program in its place
_STARTED: list[subprocess.Popen[bytes]] = []


@cache
def server() -> Path:
    """Return the socket of the server, which the first process of this test run that asks for it starts."""
    run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"ltpipe-tests-{os.getuid()}-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to somebody else"
    path = folder / "socket"
    with open(folder / "lock", "w") as lock, open(folder / "log", "a+") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answers(path):
            path.unlink(missing_ok=True)  # of an earlier run with this process id
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", VARIABLE: "2"}
            ready, writing = os.pipe()
            command = [PYTHON, str(HERE / "fork_server.py"), str(path), str(run), str(writing)]
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "pass_fds": [writing]}
            _STARTED.append(subprocess.Popen(command, env=environment, **files))
            os.close(writing)
            with open(ready, "rb") as ended:
                assert ended.read(), f"the server does not start:\n{Path(log.name).read_text()}"
    return path


def answers(path: Path) -> bool:
    """Whether a server listens on a socket."""
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def program(path: Path, name: str, *, prepare: str = "", python: Path | str = "") -> str:
    """Return the line of a shell script that becomes a command of the server, but for the arguments.

    Args:
        path: Socket of the server.
        name: ``ltpipe``, ``snakemake`` or ``stub``; nothing for a script that stands for Python.
        prepare: Module whose ``prepare`` gets the name and the list of arguments before the command begins.
        python: What ``ltpipe`` takes for the interpreter when it starts others.
    """
    words = [PYTHON, "-IS", str(HERE / "fork_client.py"), str(path), prepare, str(python) or PYTHON]
    return " ".join([*(f'"{word}"' for word in words), name])


def python_script(folder: Path) -> Path:
    """Write a program that is Python in a fork of the server; it takes ``-c`` and ``-u -m ltpipe.cli``."""
    script = folder / "forked_python"
    script.write_text(f'#!/bin/sh\nexec {program(server(), "", python=script)} "$@"\n')
    script.chmod(0o755)
    return script


class Command:
    """A running command.

    Args:
        path: Socket of the server.
        argv: Program and arguments.
        folder: Working directory.
        environment: The whole one.
        output: File for what it prints.
        prepare: As of :func:`program`.
        python: As of :func:`program`.
    """

    def __init__(
        self,
        path: Path,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: Path,
        *,
        prepare: str = "",
        python: Path | str = "",
    ) -> None:
        self.output = output
        with open(os.devnull) as nothing, open(output, "w") as out:
            fds = [nothing.fileno(), out.fileno(), out.fileno()]
            self.connection, self._reader, self.pid = start(
                str(path), list(argv), dict(environment), str(folder), fds, str(python) or PYTHON, prepare
            )

    def wait(self, seconds: float = 900) -> int:
        """Return its exit status, minus the signal if one killed it."""
        self.connection.settimeout(seconds)
        try:
            status = int(self._reader.readline())
        except TimeoutError:
            self.connection.close()
            raise TimeoutError(f"still running after {seconds} s:\n{self.text()[-2000:]}") from None
        self.connection.close()
        return status

    def end(self) -> None:
        """Have it killed, and wait for its end."""
        self.connection.shutdown(socket.SHUT_RDWR)
        while Path(f"/proc/{self.pid}").exists():
            time.sleep(0.01)

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

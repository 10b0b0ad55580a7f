"""Work in a process of its own that may take so much time and memory and no more, and what became of it."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ltpipe.errors import UserError

MIB = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """What became of some work.

    Attributes:
        kind: ``done``, ``refused`` (a clear error), ``traceback``, ``memory``, ``slow``, or how the process ended.
        text: The error.
        mib: Memory that was used at most beyond that before the work.
    """

    kind: str
    text: str = ""
    mib: float = 0.0


def limited(work: Callable[[], object], *, seconds: int = 2, mib: int = 200) -> Outcome:
    """Do some work in a forked process.

    Args:
        work: What is done; what it returns is left aside.
        seconds: Processor time that it may take; three times as long by the clock and 20 seconds more.
        mib: Memory that it may take beyond what this process has.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # Whatever was written to a file of this process stays there; nothing is written twice.
        _child(work, writing, seconds, mib)
    os.close(writing)
    end, content, late = time.monotonic() + 3 * seconds + 20, b"", False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        late = not ready
        part = b"" if late else os.read(reading, 65536)
        content += part
        if not part:
            break
    os.close(reading)
    if late:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late or code == -signal.SIGXCPU:
        return Outcome("slow", f"more than {seconds} s")
    return pickle.loads(content) if content else Outcome(signal.Signals(-code).name if code < 0 else f"exit {code}")


def _child(work: Callable[[], object], writing: int, seconds: int, mib: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + mib * MIB, size + mib * MIB))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        try:
            work()
            outcome = Outcome("done")
        except UserError as error:
            outcome = Outcome("refused", str(error))
        except MemoryError:
            outcome = Outcome("memory", traceback.format_exc())
        except BaseException:
            outcome = Outcome("traceback", traceback.format_exc())
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(writing, pickle.dumps(Outcome(outcome.kind, outcome.text[-20000:], used)))
    finally:
        os._exit(0)

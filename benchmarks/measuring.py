"""What all benchmarks share: work in a process of its own, its time and memory, and one form of results.

Times that are compared are computing times of all threads: other programs may run on the machine, and the time that
this one spends computing is hardly theirs. Work on several cores takes less on the clock.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

from ltpipe.run.files import write_json

PACKAGES = ("numpy", "numba", "pyarrow", "msgspec", "vernier", "lvis")


@dataclass(frozen=True)
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: Computing time of all threads, imports included if the work imports.
        wall_seconds: Time on the clock.
        peak_mib: Largest resident memory of its process.
        added_mib: How much larger the peak is than what the process used before.
    """

    seconds: float
    wall_seconds: float
    peak_mib: float
    added_mib: float

    def text(self) -> str:
        """Return seconds and peak for people."""
        return f"{self.seconds:.3g} s, {self.peak_mib / 1024:.2g} GiB"


@dataclass(frozen=True)
class Row:
    """One line of the table in ``docs/speed.md``.

    Attributes:
        work: What is done.
        ours: Our side, for people.
        theirs: The other side.
        ratio: How much better ours is; None where only an absolute aim exists.
        aim: What was aimed at.
        reached: Whether it was.
        note: What the numbers do not say: slices, and where the remaining time goes.
    """

    work: str
    ours: str
    theirs: str
    ratio: float | None
    aim: str
    reached: bool
    note: str = ""


def apart(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Cost]:
    """Run ``work(*arguments)`` in a new process; return its result and what it took.

    ``work`` is a function of a module; arguments and result travel between processes.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Cost]:
    before = _kib("VmRSS")
    start, computing = time.perf_counter(), time.process_time()
    result = work(*arguments)
    seconds, cpu = time.perf_counter() - start, time.process_time() - computing
    # The peak in getrusage would be inherited from the parent.
    peak = _kib("VmHWM")
    return result, Cost(cpu, seconds, peak / 1024, (peak - before) / 1024)


def _kib(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {key}"
    return int(found[1])


def result_file(text: str) -> Path:
    """Return the file that ``--output`` names: a new one, or what a benchmark has written.

    Raises:
        ArgumentTypeError: Something else lies there.
    """
    file = Path(text)
    try:
        own = str(json.loads(file.read_text(encoding="utf-8"))["command"]).startswith("python benchmarks/")
    except FileNotFoundError:
        own = True
    except (OSError, ValueError, TypeError, KeyError):
        own = False
    if not own:
        raise ArgumentTypeError(f"{file} is no result of a benchmark: name a new file")
    return file


def write_result(
    script: str, output: Path, arguments: Sequence[str] | None, rows: Sequence[Row], details: dict[str, Any]
) -> None:
    """Write ``benchmarks/results/<name>.json`` and print the rows."""
    details = {key: asdict(value) if isinstance(value, Cost) else value for key, value in details.items()}
    given = sys.argv[1:] if arguments is None else arguments
    write_json(
        output,
        {
            "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *given]),
            "rows": [asdict(row) for row in rows],
            "details": details,
            "machine": {"processor": platform.machine(), "cores": cpu_count()},
            "versions": {name: version(name) for name in PACKAGES},
        },
    )
    for row in rows:
        ratio = "" if row.ratio is None else f", {row.ratio:.3g} times"
        print(f"{row.work}: ours {row.ours}; theirs {row.theirs}{ratio} (aim {row.aim}) {row.note}")

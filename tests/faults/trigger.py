"""What strikes inside a running stage: a moment, and what happens then.

The environment says ``FAULT="MOMENT NUMBER ACTION"`` and, in ``FAULT_STAGE``, which command line it is meant for.
Moments are counted in the stage's own events, so that they do not depend on how busy the machine is:

- ``file N``: before the N-th time that a file below the results is opened, renamed or removed;
- ``cpu S``: after S seconds of processor time;
- ``batch N``: before the batch with the number N, from 0, is asked of loader processes.

``FAULT=count`` only counts the first two.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ltpipe.engine import calibrator_training, shards

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
RESULTS = "results/"
# What trainings are started with when a child of torchrun shall be killed.
PROCESSES = "--processes 2"


def prepare(program: str, arguments: list[str]) -> None:
    """Get a forked command ready: its number of processes, states often enough, and the trap."""
    if program == "snakemake":
        os.environ["FAULT_SNAKEMAKE"] = str(os.getpid())
    if program != "ltpipe":
        return
    if arguments[0] in ("base", "lst") and os.environ.get("PROCESSES", "1") != "1" and "RANK" not in os.environ:
        arguments += ["--processes", os.environ["PROCESSES"]]
    # The project is tiny: states at every few steps and images, so that there is something to continue from.
    shards.SIZE = 3
    calibrator_training.train_head.__kwdefaults__["save_every"] = 2
    install(arguments)


def install(arguments: list[str]) -> None:
    """Set the trap if this command line is the one that is meant."""
    fault = os.environ.get("FAULT", "").split()
    if not fault:
        return
    line = " ".join(word.removeprefix("--experiment=") for word in arguments).removesuffix(f" {PROCESSES}")
    fired = Path(os.environ["FAULT_FIRED"])
    os.environ.setdefault("FAULT_GROUP", str(os.getpgrp()))  # torchrun's processes have groups of their own
    if fault == ["count"]:
        _count(fired / line.replace("/", "_"))
    elif line == os.environ["FAULT_STAGE"] and os.environ.get("RANK") == os.environ.get("FAULT_RANK"):
        if fired.exists():
            return  # Snakemake has started the stage again
        moment, number, action = fault
        {"file": _before_file, "cpu": _after_cpu, "batch": _before_batch}[moment](float(number), fired, action)


def _ours(event: str, arguments: tuple) -> bool:
    if event not in EVENTS or not arguments:
        return False
    path = arguments[0]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return isinstance(path, str | os.PathLike) and RESULTS in os.fspath(path) + "/"


def _count(report: Path) -> None:
    """Write the number of file events and the processor time when the process ends."""
    events = [0]
    own = os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        if _ours(event, arguments) and os.getpid() == own:
            events[0] += 1

    sys.addaudithook(hook)

    @atexit.register
    def end() -> None:
        if os.getpid() == own:
            used = resource.getrusage(resource.RUSAGE_SELF)
            report.write_text(f"{events[0]} {used.ru_utime + used.ru_stime}")


def _before_file(number: float, fired: Path, action: str) -> None:
    left, own = [number], os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        if left[0] > 0 and _ours(event, arguments) and os.getpid() == own:
            left[0] -= 1
            if left[0] == 0:
                strike(action, fired)

    sys.addaudithook(hook)


def _after_cpu(seconds: float, fired: Path, action: str) -> None:
    own = os.getpid()

    def struck(*_: object) -> None:
        if os.getpid() == own:
            strike(action, fired)

    signal.signal(signal.SIGPROF, struck)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _before_batch(number: float, fired: Path, action: str) -> None:
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader

    left, batch = [number], Loader._next_data

    def counted(self: Any) -> Any:
        if left[0] == 0:
            strike(action, fired)
        left[0] -= 1
        return batch(self)

    Loader._next_data = counted


def strike(action: str, fired: Path) -> None:
    """Do it."""
    fired.write_text(f"{os.getpid()} {os.environ.get('SLURM_JOB_ID', '')}")
    snakemake, me = int(os.environ.get("FAULT_SNAKEMAKE", "0")), os.getpid()
    if action == "kill":
        os.kill(me, signal.SIGKILL)
    elif action == "terminate":
        os.kill(me, signal.SIGTERM)
    elif action == "kill_snakemake":
        os.kill(snakemake, signal.SIGKILL)
    elif action == "kill_both":
        os.kill(snakemake, signal.SIGKILL)
        os.kill(me, signal.SIGKILL)
    elif action == "interrupt":
        os.kill(snakemake, signal.SIGINT)
        os.killpg(os.getpgrp(), signal.SIGINT)
    elif action == "kill_loader":
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    elif action == "terminate_group":
        # By another process: loader processes obey the one they belong to.
        subprocess.run(["kill", "-TERM", "--", f"-{os.environ['FAULT_GROUP']}"], check=True, start_new_session=True)
    elif action == "stop":
        os.kill(me, signal.SIGSTOP)
    elif action == "full":
        _fill_results()
    elif action == "limit":
        _limit_files()
    else:
        raise ValueError(action)


def _fill_results() -> None:
    """Leave no byte on the file system of the results."""
    stats = os.statvfs("results")
    used = (stats.f_blocks - stats.f_bfree) * stats.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={max(used, 4096)}", os.path.realpath("results")], check=True)


def _limit_files() -> None:
    """Let no file grow beyond the length of the log, in this process; the error shall still fit."""
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (os.fstat(1).st_size + 3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )

"""What went wrong in the processes of a data loader, from the words in which torch tells of it. Without torch."""

from __future__ import annotations

import gc
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from ltpipe.errors import UserError
from ltpipe.run.cores import VARIABLE

SHARED_MEMORY = "/dev/shm"
_KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: (.+?)\. ")
_EXITED = re.compile(r"DataLoader worker \(pid (\d+)\) exited unexpectedly with (exit code \d+)")
_LOST = re.compile(r"DataLoader worker \(pid\(s\) (\d+)[\d, ]*\) exited unexpectedly")
_NOT_SENT = re.compile(r"(?:</torch_|shared memory).*: ([^:]+) \(\d+\)")
_FEWER = f"use fewer loader processes: {VARIABLE}=4 in the environment makes two for each training process, 2 none"
_CONTINUES = "the same command continues from the last saved state"


def from_loader(error: Exception) -> UserError | None:
    """Return the clear error behind one that a data loader has raised; None if it tells of no loader process.

    Args:
        error: Any error: a loader process met one, was killed, or had no memory to send what it has read.
    """
    text = str(error)
    if isinstance(error, UserError):
        return UserError(text.rpartition("UserError: ")[2].strip()) if text.startswith("Caught UserError") else None
    if failed := _NOT_SENT.search(text):
        return UserError(
            "loader processes cannot send images through the shared memory",
            where=SHARED_MEMORY,
            got=f"{failed[1]}; {_shared_memory()}",
            fix=f"make it larger (in a container: --shm-size=8g), or {_FEWER}; {_CONTINUES}",
        )
    if "Too many open files" in text or "items of ancdata" in text:
        return UserError(
            "too many open files: loader processes send every image as one",
            where=f"the limit of this process is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}",
            fix=f"raise it (ulimit -n 65536), or {_FEWER}; {_CONTINUES}",
        )
    # torch says how it ended at once, and then once more, without that, where the batch is missing.
    said = "\n".join(str(one) for one in _with_causes(error))
    if killed := _KILLED.search(said):
        names = {signal.strsignal(number): number.name for number in signal.Signals}
        return _lost(killed[1], names.get(killed[2], killed[2]))
    if ended := _EXITED.search(said):
        return _lost(ended[1], ended[2])
    return _lost(lost[1], _how_it_ended(int(lost[1]))) if (lost := _LOST.search(said)) else None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _how_it_ended(pid: int) -> str:
    """Return the signal or exit code of a child process.

    torch's first message comes as an exception in the midst of anything, and what it interrupts may have swallowed it.
    """
    for one in gc.get_objects():
        if isinstance(one, BaseProcess) and one.pid == pid and one.exitcode is not None:
            return f"exit code {one.exitcode}" if one.exitcode >= 0 else signal.Signals(-one.exitcode).name
    return "unknown"


def _shared_memory() -> str:
    size = shutil.disk_usage(SHARED_MEMORY)
    return f"{size.free / 2**20:.2f} MiB free of {size.total / 2**20:.2f} MiB"


def _lost(pid: str, how: str) -> UserError:
    """Return the error for a loader process that ended by a signal or with an exit code."""
    helps = {
        "SIGKILL": f"see whether memory ran out (dmesg, the limit of the job); ask for more, or {_FEWER}",
        "SIGBUS": f"{SHARED_MEMORY} was probably too small ({_shared_memory()}): make it larger (in a container: "
        f"--shm-size=8g), or {_FEWER}",
        "SIGTERM": "see who stopped it",
    }
    return UserError(
        "a loader process was killed",
        where=f"process {pid}, which read images for this one",
        got=how,
        fix=f"{helps.get(how, f'see its own words above; to find the cause, {_FEWER}')}; {_CONTINUES}",
    )
